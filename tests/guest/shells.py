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


# Each round changes what the last one has read, in every way in which a file can change.
_COHERENCE = """
    cd /work; mkdir j$1; cd j$1; mkdir A B; echo 10 >A/base; echo 20 >B/base; n=0
    echo 'int puts(const char *); int main(void) {
        return
        #include "value.h"
        +
        #include "linked.h"
        +
        #include "dir/base"
        ; }' >p.c
    while [ $n -lt $2 ]; do
        n=$((n + 1)); k=$((n % 50))
        echo $k >value.h
        echo $((n % 7)) >t$((n % 3)).h; ln -s t$((n % 3)).h l; mv -T l linked.h
        test $((n % 2)) = 0 && d=A || d=B; ln -s $d l; mv -T l dir; read base <$d/base
        test $((n % 5)) = 0 && rm -f p
        gcc p.c -o p || exit 1
        ./p; got=$?
        test $got = $((k + n % 7 + base)) || { echo "round $n: $got"; exit 1; }
    done
"""


def coherence(rounds: int, jobs: int) -> str:
    """A script of so many rounds in each of so many jobs at once; any that reads what is no longer
    true, or not all of it, makes it fail."""
    script = f"job() {{ {_COHERENCE} }}; " + "".join(f"job {n} {rounds} & " for n in range(jobs))
    return script + "for n in $(jobs -p); do wait $n || exit 1; done"


def settle(guest: Guest) -> None:
    """Waits until the ledger has an entry for each call whose caller has ended."""
    until(lambda: not (guest.offload and guest.offload.busy))
