"""Trees that somebody changes while they are read or written: never does anything lead out of them.

Another process swaps folders and files for links to the outside, as fast as it can. Each call ends
with a result or with a GuestctlError of one line; the outside stays as it is, and is not read.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestctl.errors import GuestctlError
from guestctl.translate import check, collect, list_tree, repair, stage
from tests.corpus import Member, directory, hardlink, symlink, tar_bytes
from tests.handles import handles, left_open

SECONDS = 0.4
TURNS = 8  # at least, however slow the machine
SECRET = b"the secret of the outside"
STRANGER = 4008636142  # the owner that metadata on the outside names
META = ".virtfs_metadata"
WANTED = [
    directory("a"),
    *(Member(f"a/f{n}", data=b"x" * 3000) for n in range(30)),
    directory("a/b"),
    *(Member(f"a/b/f{n}", data=b"y" * 100) for n in range(30)),
    hardlink("a/b/link", "a/f1"),
    symlink("a/soft", "b"),
    Member("m", data=b"m"),
    directory("z"),
    Member("z/file", data=b"z"),
]


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for path in [root, *root.rglob("*")]:
        info = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        facts = (info.st_mode, info.st_nlink, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        found[str(path)] = (*facts, data, tuple(os.listxattr(path)))
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What must not be touched, in the shape of the tree: the same names lead on into it."""
    outside = tmp_path / "outside"
    (outside / "b" / META).mkdir(parents=True)
    (outside / META).mkdir()
    for folder in (outside, outside / "b"):
        for name in ("f1", "f2", "file", "link", "b", "new"):
            if not (folder / name).exists():
                (folder / name).write_bytes(SECRET)
            if not (folder / META / name).exists():
                (folder / META / name).write_bytes(b"virtfs.uid=-286331154\n" + SECRET)
    return outside


@contextlib.contextmanager
def swapping(*pairs: tuple[Path, Path]) -> Iterator[subprocess.Popen[bytes]]:
    argv = [str(path) for pair in pairs for path in pair]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.swapper", *argv], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"swapping\n"
        yield process
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(timeout=20)
        process.stdout.close()


def to_links(tree: Path, outside: Path, aside: Path) -> list[tuple[Path, Path]]:
    """Folders of the tree, and metadata folders, for links to the outside.

    None of them lies in another: else the swaps themselves would reach the outside.
    """
    pairs = []
    for name in ("a/b", f"a/{META}", "z", META):
        other = aside / name.replace("/", "-")
        other.symlink_to(outside / "b" if name == "a/b" else outside)
        pairs.append((tree / name, other))
    return pairs


def to_other_types(tree: Path, outside: Path, aside: Path) -> list[tuple[Path, Path]]:
    """Files for links, pipes, folders; a folder for a file; metadata for all of these."""
    (aside / "link").symlink_to(outside / "f1")
    os.mkfifo(aside / "pipe")
    (aside / "folder").mkdir()
    (aside / "folder/in").write_bytes(b"")
    (aside / "file").write_bytes(b"f")
    (aside / "meta-link").symlink_to(outside / "f1")
    os.mkfifo(aside / "meta-pipe")
    return [
        (tree / "a/f1", aside / "link"),
        (tree / "a/f2", aside / "pipe"),
        (tree / "m", aside / "folder"),
        (tree / "z", aside / "file"),
        (tree / "a" / META / "f3", aside / "meta-link"),
        (tree / "a" / META / "f4", aside / "meta-pipe"),
    ]


Swaps = Callable[[Path, Path, Path], list[tuple[Path, Path]]]


def collected(tree: Path) -> None:
    out = io.BytesIO()
    collect(tree, out)
    assert SECRET not in out.getvalue()
    assert str(STRANGER).encode() not in out.getvalue()


def listed(tree: Path) -> None:
    assert all(entry.uid != STRANGER for entry in list_tree(tree))


def staged(tree: Path) -> None:
    changed = [*WANTED, directory("a/b"), Member("a/new", data=b"new"), Member("a/b/f2")]
    stage(io.BytesIO(tar_bytes([*changed, hardlink("z/link", "a/f1")])), tree, follow_dirs=True)


WORKS: dict[str, Callable[[Path], object]] = {
    "collect": collected,
    "list": listed,
    "check": check,
    "repair": repair,
    "stage": staged,
}


def laid(place: Path, swaps: Swaps, model: str) -> list[tuple[Path, Path]]:
    """The tree, and what its entries are to be swapped for, made anew."""
    tree, aside = place / "tree", place / "aside"
    for path in (tree, aside):
        shutil.rmtree(path, ignore_errors=True)
    aside.mkdir()
    stage(io.BytesIO(tar_bytes(WANTED)), tree, security_model=model)
    pairs = swaps(tree, place / "outside", aside)
    return [pair for pair in pairs if model == "mapped-file" or META not in str(pair[0])]


@pytest.mark.parametrize("model", ["mapped-file", "mapped-xattr"])
@pytest.mark.parametrize("swaps", [to_links, to_other_types])
@pytest.mark.parametrize("work", WORKS)
def test_nothing_leads_out(
    tmp_path: Path, outside: Path, work: str, swaps: Swaps, model: str
) -> None:
    pairs = laid(tmp_path, swaps, model)
    before = snapshot(outside)
    done = refused = 0
    with swapping(*pairs) as swapper:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or done + refused < TURNS:
            try:
                WORKS[work](tmp_path / "tree")
                done += 1
            except GuestctlError as error:
                refused += 1
                assert "\n" not in str(error)
            if work in ("stage", "repair"):  # which replace what leads out
                swapper.send_signal(signal.SIGSTOP)
                os.waitpid(swapper.pid, os.WUNTRACED)
                assert snapshot(outside) == before
                laid(tmp_path, swaps, model)
                swapper.send_signal(signal.SIGCONT)
    assert snapshot(outside) == before
    assert set(os.listdir(tmp_path)) == {"aside", "outside", "tree"}


def test_no_descriptor_is_left_open(tmp_path: Path, outside: Path) -> None:
    """However it ends: whoever collects a thousand broken trees still has descriptors."""
    open_before = handles()
    for swaps in (to_links, to_other_types):
        for model in ("mapped-file", "mapped-xattr"):
            for work, function in WORKS.items():
                for one, other in laid(tmp_path, swaps, model):
                    if one.exists() and os.path.lexists(other):
                        one.rename(tmp_path / "kept")
                        other.rename(one)
                    with contextlib.suppress(GuestctlError):
                        function(tmp_path / "tree")
                    assert not left_open(open_before), (work, one)
                    shutil.rmtree(tmp_path / "kept", ignore_errors=True)
                    (tmp_path / "kept").unlink(missing_ok=True)
                    laid(tmp_path, swaps, model)
