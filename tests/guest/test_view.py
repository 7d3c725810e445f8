"""Views of a live guest's share: what the guest wrote the moment before is what a tool reads."""

from __future__ import annotations

import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guestctl import PIPE, Guest
from guestctl.places import Places
from guestctl.view import Mount, Outcome, Tree, View
from tests.viewtools import compiler, cross_toolchain

ROUNDS = int(os.environ.get("GUESTCTL_VIEW_ROUNDS", "8"))
JOBS = 4
MOUNTS = (Mount("root", b"", b"/"), Mount("work", b"", b"/work"))

# Each round says "missing", "made" or "gone" when the host shall compile, and waits for its word.
# `sync -f` is the syncfs of offload's stub: the guest's pages reach the share.
SCRIPT = """
set -e
mkdir -p "$1/first/sub" "$1/second/sub"
cd "$1"
printf '#include "%s.h"\\n' fresh link dir/sub/in same >a.c
ask() { sync -f .; echo "$1 $n"; read -r answer; [ "$answer" = "$1 $n" ]; }
n=0
while [ $n -lt $2 ]; do
    echo "same $((100000 + n))" >same.h
    ask missing
    echo "fresh $n" >fresh.h
    echo "link $n" >"link $n.h"
    ln -s "link $n.h" link.h
    side=first; [ $((n % 2)) = 0 ] || side=second
    echo "in $n" >$side/sub/in.h
    ln -s $side dir.new
    mv -T dir.new dir
    ask made
    rm link.h
    mkdir link.h
    ask gone
    rm -r link.h fresh.h
    n=$((n + 1))
done
"""


class Lines:
    """A sink that hands out what it gets by lines."""

    def __init__(self) -> None:
        self.ready: queue.Queue[str] = queue.Queue()
        self._rest = b""

    def write(self, data: bytes, /) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.ready.put(line.decode())


@pytest.fixture(scope="module")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cross_toolchain(tmp_path_factory.mktemp("cross") / "tc")


def check_round(word: str, number: int, outcome: Outcome) -> None:
    if word != "made":
        assert outcome.status == 1, (word, number, outcome)
        assert b"fresh.h" in outcome.stderr or word == "gone"
        return
    texts = [f"fresh {number}", f"link {number}", f"in {number}", f"same {100000 + number}"]
    lines = [line for line in outcome.stdout.splitlines() if line and not line.startswith(b"#")]
    assert lines == [text.encode() for text in texts], (number, outcome)


def drive(guest: Guest, view: View, name: str, rounds: int = ROUNDS) -> int:
    """Runs the script and compiles when it asks; returns how often it did."""
    lines = Lines()
    process = guest.start(
        ["bash", "-c", SCRIPT, "bash", name, str(rounds)], stdin=PIPE, stdout=lines, timeout=1200
    )
    ending = threading.Thread(target=process.wait)
    ending.start()
    assert process.stdin
    asked = 0
    try:
        for _ in range(3 * rounds):
            word, number = lines.ready.get(timeout=60).split()
            where = os.fsencode(f"/work/{name}")
            outcome = view.call(compiler("-E", "a.c", cwd=where, mounts=MOUNTS))
            check_round(word, int(number), outcome)
            process.stdin.write(f"{word} {number}\n".encode())
            asked += 1
    finally:
        process.stdin.close()
        ending.join(60)
    assert process.wait().status == 0
    return asked


def test_parallel_jobs_in_a_guest_see_nothing_stale(
    shared_guest: Guest, toolchain: Path, places: Places, tmp_path: Path
) -> None:
    (tmp_path / "root/tmp").mkdir(parents=True)
    share = shared_guest.work
    with shared_guest.mounted():
        trees = {"root": Tree(tmp_path / "root"), "work": Tree(share.path, share.security_model)}
        with (
            View(trees, toolchain, cache_dir=places.cache) as view,
            ThreadPoolExecutor(JOBS) as pool,
        ):
            jobs = [
                pool.submit(drive, shared_guest, view, f"job {number}") for number in range(JOBS)
            ]
            assert [job.result() for job in jobs] == [3 * ROUNDS] * JOBS


def test_files_of_all_kinds_as_a_guest_makes_them(
    shared_guest: Guest, toolchain: Path, places: Places, tmp_path: Path
) -> None:
    script = """
        set -e
        mkdir real; echo 'int in_real;' >real/a.h; ln -s real alias; ln -s alias/a.h "b c.h"
        ln "b c.h" hard.h; ln -s ../outside up.h; mkfifo pipe.h; mknod null.h c 1 3
        name=$(printf 'n\\377.h'); ln -s /work/real/a.h "$name"; ln -s loop.h loop.h
        chmod 000 real/a.h; sync -f .
    """
    (tmp_path / "root/tmp").mkdir(parents=True)
    share = shared_guest.work
    with shared_guest.mounted():
        shared_guest.run(["bash", "-c", script], timeout=120).check()
        trees = {"root": Tree(tmp_path / "root"), "work": Tree(share.path, share.security_model)}
        with View(trees, toolchain, cache_dir=places.cache) as view:

            def read(name: str | bytes) -> Outcome:
                return view.call(compiler("-E", "-P", name, cwd=b"/work", mounts=MOUNTS))

            for name in ("alias/a.h", "b c.h", "hard.h", b"n\xff.h"):
                assert read(name).stdout.strip() == b"int in_real;", name
            for name in ("up.h", "pipe.h", "null.h", "loop.h"):
                outcome = read(name)
                assert (outcome.status, outcome.stdout) == (1, b""), name
