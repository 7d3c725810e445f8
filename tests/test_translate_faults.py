"""Disks that are full, calls that fail: no broken archive under its final name, no tree that looks
whole and is not, and an error that says what happened.

Full disks are small file systems of our own (bubblewrap); all else is done by strace, which makes
the kernel answer with an error, here and there and in the middle of cleaning up as well.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from guestctl.errors import ArchiveError, TreeError
from guestctl.translate import check, collect, is_partial, list_tree, stage
from tests.corpus import Member, directory, every_type, members, tar_bytes
from tests.faulty import KINDS

TURNS = int(os.environ.get("GUESTCTL_FAULT_TURNS", "6"))

# The calls, the error, and that every Nth of them in a thread fails.
FAULTS = [
    ("openat", "EIO", 41),
    ("openat", "EMFILE", 7),
    ("read", "EIO", 7),
    ("pread64,preadv", "EIO", 7),
    ("write,writev", "ENOSPC", 41),
    ("write,writev", "EIO", 7),
    ("copy_file_range", "ENOSPC", 3),
    ("copy_file_range", "EIO", 2),
    ("mkdirat", "ENOSPC", 5),
    ("linkat", "EIO", 7),
    ("unlinkat", "EIO", 7),
    ("rename,renameat", "EIO", 2),
    ("fsync,fdatasync", "EIO", 3),
    ("fsetxattr,setxattr", "EIO", 3),
    ("utimensat", "EIO", 41),
    ("fstat,newfstatat", "EIO", 41),
    ("getdents64", "EIO", 7),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, the tree that it makes, and what is collected of it."""
    place = tmp_path_factory.mktemp("made")
    pax = (("SCHILY.xattr.security.capability", "\1\0\0\2\0 \0\0" + "\0" * 12),)
    wanted = [
        *every_type(),
        Member("./x-ping", data=b"p" * 70_000, pax=pax),
        directory("./y"),
        *(Member(f"./y/{number}", data=b"y" * 40_000 * number) for number in range(6)),
    ]
    (place / "source.tar").write_bytes(tar_bytes(wanted))
    stage(place / "source.tar", place / "good")
    for kind in KINDS:
        collect(place / "good", place / f"good.{kind}")
    return place


def run_under(calls: str, error: str, step: int, place: Path) -> list[dict[str, str]]:
    """The turns of tests.faulty while every `step`th of those calls fails."""
    ours, theirs = socket.socketpair()
    ours.settimeout(120)
    argv = [sys.executable, "-m", "tests.faulty", place, TURNS, theirs.fileno()]
    driver = subprocess.Popen([*map(str, argv)], pass_fds=[theirs.fileno()])
    theirs.close()
    lines = ours.makefile("rb")
    try:
        pid = int(lines.readline())
        inject = f"inject={calls}:error={error}:when={step}+{step}"
        # It says that it has attached, and then nothing more.
        tracer = subprocess.Popen(
            [
                "strace",
                "-f",
                "-e",
                f"trace={calls}",
                "-e",
                inject,
                "-o",
                "/dev/null",
                "-p",
                str(pid),
            ],
            stderr=subprocess.PIPE,
        )
        try:
            assert tracer.stderr is not None
            assert b"attached" in tracer.stderr.readline()
            ours.send(b"x")
            return [json.loads(lines.readline()) for _ in range(TURNS)]
        finally:
            tracer.terminate()
            tracer.communicate(timeout=20)
    finally:
        driver.kill()
        driver.wait(timeout=20)
        lines.close()
        ours.close()


@pytest.mark.parametrize(("calls", "error", "step"), FAULTS)
def test_calls_that_fail(made: Path, tmp_path: Path, calls: str, error: str, step: int) -> None:
    os.link(made / "source.tar", tmp_path / "source.tar")
    shutil.copytree(made / "good", tmp_path / "good", symlinks=True)
    stage(tmp_path / "source.tar", tmp_path / "good")
    whole = members(made / "good.tar")
    failed = 0
    for number, outcome in enumerate(run_under(calls, error, step, tmp_path)):
        here = tmp_path / str(number)
        assert "BARE" not in str(outcome) and "\n" not in "".join(outcome.values())
        failed += bool(outcome["stage"]) + bool(outcome["collect"])
        archives = [name for name in os.listdir(here) if name.startswith("out.")]
        if outcome["collect"]:
            assert not archives, outcome
        else:
            (name,) = archives
            assert (here / name).read_bytes() == (made / name.replace("out", "good")).read_bytes()
        tree = here / "tree"
        if not outcome["stage"] or (
            tree.exists() and not is_partial(tree) and len(list(list_tree(tree))) > 1
        ):
            out = io.BytesIO()
            collect(tree, out)
            assert members(out.getvalue()) == whole, outcome
            assert not check(tree)
        elif tree.exists() and is_partial(tree):
            with pytest.raises(TreeError, match="partly staged"):
                collect(tree, io.BytesIO())
            stage(tmp_path / "source.tar", tree)
            assert not check(tree)
    assert failed


def on_small_disk(
    tmp_path: Path, size: int, script: str, **names: object
) -> subprocess.CompletedProcess[str]:
    """Runs a script with a file system of `size` bytes at $disk; its folder is empty elsewhere."""
    disk = tmp_path / "disk"
    disk.mkdir(exist_ok=True)
    confined = ["bwrap", "--dev-bind", "/", "/", "--size", str(size), "--tmpfs", str(disk)]
    environment = {"disk": str(disk), "virtfs": f"{sys.executable} -m guestctl virtfs"}
    environment |= {name: str(value) for name, value in names.items()}
    return subprocess.run(
        [*confined, "sh", "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def random_tar(path: Path, *sizes: int) -> Path:
    wanted = [Member(f"d{n % 7}/f{n}", data=os.urandom(size)) for n, size in enumerate(sizes)]
    path.write_bytes(tar_bytes([directory("d0"), *wanted]))
    return path


@pytest.mark.parametrize("sizes", [(3_000_000,), (100,) * 2000, (40_000,) * 100])
def test_staging_onto_a_full_disk(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """It says so, the tree is refused, and staged anew when there is room it is whole."""
    source = random_tar(tmp_path / "s.tar", *sizes)
    small = random_tar(tmp_path / "small.tar", 100)
    done = on_small_disk(
        tmp_path,
        2_000_000,
        """
        $virtfs stage $source $disk/tree; echo stage $?
        $virtfs collect $disk/tree $out; echo collect $?
        $virtfs check $disk/tree; echo check $?
        $virtfs stage $small $disk/tree; echo again $?
        $virtfs check $disk/tree; echo clean $?
        $virtfs collect $disk/tree $out; echo collected $?
        """,
        source=source,
        small=small,
        out=tmp_path / "out.tar",
    )
    statuses = [line for line in done.stdout.splitlines() if line[-1].isdigit()]
    assert statuses == ["stage 1", "collect 1", "check 1", "again 0", "clean 0", "collected 0"]
    assert "partial-stage" in done.stdout and "Traceback" not in done.stderr
    first, *_ = done.stderr.splitlines()
    assert first.startswith("guestctl: ") and "No space left on device" in first
    assert "partly staged" in done.stderr
    assert len(members(tmp_path / "out.tar")) == 3


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.zst"])
def test_collecting_onto_a_full_disk(tmp_path: Path, kind: str) -> None:
    """No archive, nothing left of it, and what had its name before stays."""
    stage(random_tar(tmp_path / "s.tar", 3_000_000, 10), tmp_path / "tree")
    done = on_small_disk(
        tmp_path,
        2_000_000,
        """
        $virtfs collect $tree $disk/new.$kind; echo $?
        ls -A $disk
        echo older >$disk/old.$kind
        $virtfs collect $tree $disk/old.$kind; echo $?
        ls -A $disk
        cat $disk/old.$kind
        """,
        tree=tmp_path / "tree",
        kind=kind,
    )
    assert done.stdout.split() == ["1", "1", f"old.{kind}", "older"]
    assert len(done.stderr.splitlines()) == 2
    assert f"new.{kind}: cannot be written: No space left on device" in done.stderr


@pytest.mark.parametrize("calls", ["copy_file_range", "copy_file_range,sendfile"])
@pytest.mark.parametrize("error", ["EXDEV", "EOPNOTSUPP", "ENOSYS", "EINVAL"])
def test_file_systems_that_copy_nothing_by_themselves(
    tmp_path: Path, calls: str, error: str
) -> None:
    """Content is asked for from the kernel first, which shares blocks where it can (docs/proof has
    that); where it refuses, it is copied otherwise."""
    (tmp_path / "source").mkdir()
    whole = os.urandom(300_001)
    (tmp_path / "source/f").write_bytes(whole)
    asked = tmp_path / "asked"
    for command in ("stage source tree", "collect tree out.tar"):
        traced = ["strace", "-f", "-o", asked, "-e", f"trace={calls}"]
        fault = ["-e", f"inject={calls}:error={error}"]
        subprocess.run(
            [*traced, *fault, sys.executable, "-m", "guestctl", "virtfs", *command.split()],
            cwd=tmp_path,
            check=True,
            timeout=100,
        )
        assert f", 300001, 0) = -1 {error}" in asked.read_text()
    assert (tmp_path / "tree/f").read_bytes() == whole
    with tarfile.open(tmp_path / "out.tar") as tar:
        content = tar.extractfile("./f")
        assert content is not None and content.read() == whole


def test_standard_output_that_is_full(tmp_path: Path) -> None:
    stage(random_tar(tmp_path / "s.tar", 300_000), tmp_path / "tree")
    with open("/dev/full", "wb") as full:
        argv = [sys.executable, "-m", "guestctl", "virtfs", "collect", tmp_path / "tree", "-"]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr and b"Traceback" not in done.stderr


def test_a_disk_without_room_for_the_mark(tmp_path: Path) -> None:
    """Nothing is begun that could not be marked as begun."""
    source = random_tar(tmp_path / "s.tar", 10)
    done = on_small_disk(
        tmp_path,
        200_000,
        """
        mkdir $disk/tree; cat /dev/zero >$disk/filler 2>/dev/null
        $virtfs stage $source $disk/tree; echo $?
        find $disk/tree -type f
        """,
        source=source,
    )
    assert done.stdout == "1\n"
    assert "No space left on device" in done.stderr


def test_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    """/proc/self/mem answers with EIO at its beginning, on every Linux."""
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m guestctl virtfs stage - tree </proc/self/mem"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"cannot be read: Input/output error" in done.stderr
    assert is_partial(tmp_path / "tree")


def test_files_that_nobody_may_read(tmp_path: Path) -> None:
    """A folder of the host: named, not skipped. A tree of ours: its owner opens it again."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/shut").write_bytes(b"x")
    (tmp_path / "source/shut").chmod(0)
    with pytest.raises(ArchiveError, match="shut: Permission denied"):
        stage(tmp_path / "source", tmp_path / "tree")
    assert is_partial(tmp_path / "tree")
    (tmp_path / "source/shut").chmod(0o444)
    stage(tmp_path / "source", tmp_path / "tree")
    (tmp_path / "tree/shut").chmod(0)
    assert collect(tmp_path / "tree", tmp_path / "out.tar").entries == 2
