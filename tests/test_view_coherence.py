"""A tool sees what the guest did the moment before, whatever else is compiled meanwhile.

The thousands of rounds that the proof wants come from GUESTCTL_VIEW_ROUNDS.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guestctl.places import Places
from guestctl.view import Limits, Mount, Outcome, Tree, View
from tests.viewtools import GuestShare, compiler, cross_toolchain, probe, probe_toolchain

ROUNDS = int(os.environ.get("GUESTCTL_VIEW_ROUNDS", "25"))
JOBS = 4
MOUNTS = (Mount("root", b"", b"/"), Mount("work", b"", b"/work"))


@pytest.fixture(scope="module")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cross_toolchain(tmp_path_factory.mktemp("cross") / "tc")


@pytest.fixture(params=["mapped-file", "mapped-xattr"])
def share(request: pytest.FixtureRequest, tmp_path: Path) -> GuestShare:
    return GuestShare(tmp_path / "share", request.param)


@pytest.fixture
def open_view(
    share: GuestShare, tmp_path: Path, places: Places
) -> Iterator[Callable[[Path], View]]:
    (tmp_path / "root/tmp").mkdir(parents=True)
    made: list[View] = []

    def build(toolchain: Path) -> View:
        trees = {"root": Tree(tmp_path / "root"), "work": Tree(share.path, share.model)}
        made.append(
            View(trees, toolchain, cache_dir=places.cache, limits=Limits(calls=8, seconds=60))
        )
        return made[-1]

    yield build
    for view in made:
        view.close()


def preprocessed(outcome: Outcome) -> list[bytes]:
    """The lines that are not line markers."""
    assert outcome.status == 0, outcome.stderr
    assert not outcome.trouble
    return [line for line in outcome.stdout.splitlines() if not line.startswith(b"#") and line]


def one_job(view: View, share: GuestShare, job: int) -> None:
    """Each round changes what the compiler read before in all the ways that there are."""
    place = f"job{job}"
    share.folder(place)
    for name in ("first", "second", "first/sub", "second/sub"):
        share.folder(f"{place}/{name}")
    share.file(f"{place}/a.c", "".join(f'#include "{name}.h"\n' for name in (
        "fresh", "link", "dir/sub/in", "same")))  # fmt: skip
    share.file(f"{place}/same.h", "same 000000\n")

    def read() -> Outcome:
        where = os.fsencode(f"/work/{place}")
        return view.call(compiler("-E", "-Isecond", "a.c", cwd=where, mounts=MOUNTS))

    for number in range(ROUNDS):
        missing = read()
        assert missing.status == 1
        assert b"fresh.h: No such file" in missing.stderr
        share.file(f"{place}/fresh.h", f"fresh {number}\n")
        share.file(f"{place}/link {number}.h", f"link {number}\n")
        share.link(f"{place}/link.h", f"link {number}.h")
        side = ("first", "second")[number % 2]
        share.file(f"{place}/{side}/sub/in.h", f"in {number}\n")
        share.link(f"{place}/dir.new", side)
        share.rename(f"{place}/dir.new", f"{place}/dir")
        share.file(f"{place}/same.h", f"same {number:06}\n")
        texts = [f"fresh {number}", f"link {number}", f"in {number}", f"same {number:06}"]
        assert preprocessed(read()) == [text.encode() for text in texts]
        # What the compiler found is replaced by a folder, a file, nothing.
        share.remove(f"{place}/link.h")
        if number % 2:
            share.folder(f"{place}/link.h")
            assert read().status == 1
        else:
            share.file(f"{place}/link.h", "a file\n")
            assert preprocessed(read())[1] == b"a file"
        share.remove(f"{place}/link.h")
        share.remove(f"{place}/fresh.h")


def test_jobs_in_parallel_read_nothing_stale(
    open_view: Callable[[Path], View], share: GuestShare, toolchain: Path
) -> None:
    view = open_view(toolchain)
    with ThreadPoolExecutor(JOBS) as pool:
        for done in [pool.submit(one_job, view, share, job) for job in range(JOBS)]:
            done.result(600)


# The scan itself, by a tool that is quick


@pytest.fixture
def view(open_view: Callable[[Path], View], tmp_path: Path) -> View:
    return open_view(probe_toolchain(tmp_path / "probe"))


def target(view: View, path: str) -> bytes:
    """A link's target, or why there is none."""
    outcome = view.call(probe("readlink", path, mounts=MOUNTS))
    return outcome.stdout if outcome.status == 0 else outcome.stderr.split()[-1]


def test_folders_that_move_take_their_links_along(view: View, share: GuestShare) -> None:
    for name in ("a", "a/b", "a/b/c", "x"):
        share.folder(name)
    share.link("a/b/c/link", "one")
    assert target(view, "/work/a/b/c/link") == b"one"
    share.rename("a/b", "x/b")
    assert target(view, "/work/x/b/c/link") == b"one"
    assert target(view, "/work/a/b/c/link") == b"ENOENT"
    share.link("x/b/c/second", "two")
    assert target(view, "/work/x/b/c/second") == b"two"
    share.folder("a/b")
    share.folder("a/b/c")
    share.link("a/b/c/link", "three")
    assert target(view, "/work/a/b/c/link") == b"three"
    assert target(view, "/work/x/b/c/link") == b"one"


def test_folders_that_come_and_go(view: View, share: GuestShare) -> None:
    """File systems give the number of a folder that went to the next one that comes."""
    for number in range(30):
        share.folder("d")
        share.folder("d/e")
        share.link("d/e/link", f"{number}")
        assert target(view, "/work/d/e/link") == str(number).encode()
        share.remove("d/e/link")
        assert target(view, "/work/d/e/link") == b"ENOENT"
        share.remove("d/e")
        share.remove("d")
        assert target(view, "/work/d") == b"ENOENT"


@contextlib.contextmanager
def stopped(view: View) -> Iterator[None]:
    """The worker does nothing meanwhile, as if it had much else to do."""
    (worker,) = (
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdigit() and _parent(int(entry)) == view.pid
    )
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def test_folders_that_are_replaced_before_anybody_looks(view: View, share: GuestShare) -> None:
    """The new one often has the number of the old one, and no watch."""
    share.folder("d")
    share.link("d/link", "-1")
    assert target(view, "/work/d/link") == b"-1"
    for number in range(10):
        with stopped(view):
            share.remove("d/link")
            share.remove("d")
            share.folder("d")
            share.link("d/other", "x")
        assert target(view, "/work/d/link") == b"ENOENT"
        share.link("d/link", f"{number}")
        assert target(view, "/work/d/link") == str(number).encode()
        assert target(view, "/work/d/other") == b"x"
        share.remove("d/other")


def test_links_that_change_while_calls_use_them(view: View, share: GuestShare) -> None:
    share.link("link", "0")
    with ThreadPoolExecutor(1) as pool:
        call = probe("say", "x", "sleep", "600", mounts=MOUNTS)
        running = pool.submit(view.call, call)
        for number in range(20):
            assert target(view, "/work/link") == str(number).encode()
            share.remove("link")
            share.link("link", str(number + 1))
        view.cancel(call)
        assert running.result(30).trouble == "cancelled"
    assert target(view, "/work/link") == b"20"


def test_more_changes_than_the_kernel_s_queue_holds(view: View, share: GuestShare) -> None:
    share.folder("d")
    share.link("first", "1")
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with stopped(view):
        for number in range(limit // 2 + 1):
            (share.path / "d" / f"{number}").touch()
            (share.path / "d" / f"{number}").unlink()
        share.link("d/last", "2")
        share.remove("first")
    assert target(view, "/work/d/last") == b"2"
    assert target(view, "/work/first") == b"ENOENT"
    share.link("d/more", "3")
    assert target(view, "/work/d/more") == b"3"


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
