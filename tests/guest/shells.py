"""Shell scripts in guests, for the tests of offload."""

from __future__ import annotations

from collections.abc import Sequence

from guestctl import Guest
from guestctl.offload import Entry
from tests.fairness import until


def sh(guest: Guest, script: str, **options: object) -> str:
    """Runs a script that must succeed, and gives all that it has said."""
    result = guest.run(["bash", "-c", script], timeout=250, **options)
    output = result.stdout + result.stderr
    assert result.status == 0, output.decode(errors="replace")[-3000:]
    return output.decode(errors="backslashreplace")


def reasons(entries: Sequence[Entry]) -> list[str]:
    """Why calls were not made on the host."""
    return [entry.reason for entry in entries if entry.where != "offload"]


# Each round changes what the last one has read, in every way in which a file can change: in place,
# by a name that was not there, by another link to a file or to a folder. What is read comes after
# up to three pages of comment, so that half of a file is noticed. The program is a small one.
_COHERENCE = r"""
    cd /work; mkdir j$1; cd j$1; mkdir A B; echo 10 >A/base; echo 20 >B/base; n=0
    ln -s A dir; base=10; echo 0 >f0.h; ln -s f0.h linked.h; linked=0
    echo 'void _start(void) {
        register int number __asm__("r7") = 1;
        register int status __asm__("r0") =
        #include "value.h"
        +
        #include "linked.h"
        +
        #include "dir/base"
        ;
        __asm__ volatile ("svc 0" : : "r"(status), "r"(number)); }' >p.c
    page=0123456789abcdef; while [ ${#page} -lt 4096 ]; do page=$page$page; done
    while [ $n -lt $2 ]; do
        n=$((n + 1)); k=$((n % 50))
        case $((n % 5)) in
            0) rm -f p f$((n - 4)).h f$((n - 7)).h; pad=$page$page;;
            1) echo $((n % 7)) >f$n.h; ln -sfn f$n.h linked.h; linked=$((n % 7)); pad=;;
            2) ln -sfn B dir; base=20; pad=$page;;
            3) echo $((n % 9)) >f$n.h; ln -sfn f$n.h linked.h; linked=$((n % 9)); pad=$page;;
            4) ln -sfn A dir; base=$((n % 30)); echo $base >A/base; pad=$page$page$page;;
        esac
        echo "/*$pad*/$k" >value.h
        gcc -nostdlib -static p.c -o p || exit 1
        ./p; got=$?
        [ $got = $((k + linked + base)) ] || { echo "round $n: $got"; exit 1; }
    done
"""


def coherence(rounds: int, jobs: int) -> str:
    """A script of so many rounds in each of so many jobs at once; any that reads what is no longer
    true, or not all of it, makes it fail."""
    script = f"job() {{ {_COHERENCE} }}; pids=; "
    script += "".join(f'job {n} {rounds} & pids="$pids $!"; ' for n in range(jobs))
    return script + "for pid in $pids; do wait $pid || exit 1; done"


def settle(guest: Guest) -> None:
    """Waits until the ledger has an entry for each call whose caller has ended."""
    until(lambda: not (guest.offload and guest.offload.busy))
