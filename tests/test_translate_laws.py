"""What must hold of any tree: there and back, twice the same, clean, and nothing half-done."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guestctl.errors import GuestctlError, TreeError
from guestctl.translate import check, collect, stage
from guestctl.tree.state import is_partial
from tests.corpus import Member, directory, every_type, members, tar_bytes
from tests.fairness import until

ids = st.one_of(st.integers(0, 70000), st.sampled_from([0, 2097152, 4294967294, 3000000000]))
names = (
    st.binary(min_size=1, max_size=12)
    .filter(lambda b: b not in (b".", b"..") and not {0, 47} & set(b))
    .map(os.fsdecode)
)
# Nanoseconds within what ext4 holds; tarfile wants the text.
times = st.integers(-(2**31 - 2) * 10**9, (2**33) * 10**9).map(
    lambda ns: (
        "mtime",
        ("-" if ns < 0 else "")
        + f"{abs(ns) // 10**9}.{abs(ns) % 10**9:09d}".rstrip("0").rstrip("."),
    )
)
targets = st.binary(min_size=1, max_size=300).filter(lambda b: 0 not in b).map(os.fsdecode)
devices = st.tuples(st.integers(0, 4095), st.integers(0, 1048574))
attributes = st.one_of(
    st.just(()),
    st.tuples(st.tuples(st.just("SCHILY.xattr.user.x"), st.text("abcdé\n", max_size=9))),
)


@st.composite
def leaves(draw: st.DrawFn) -> Member:
    kind = draw(
        st.sampled_from(
            [tarfile.REGTYPE] * 3
            + [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
        )
    )
    member = Member(
        "",
        kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(ids),
        gid=draw(ids),
        pax=(draw(times),),
    )
    if kind == tarfile.REGTYPE:
        extra = draw(attributes)
        return replace(member, data=draw(st.binary(max_size=2000)), pax=member.pax + extra)
    if kind == tarfile.SYMTYPE:
        return replace(member, link=draw(targets))
    if kind != tarfile.FIFOTYPE:
        return replace(member, rdev=draw(devices))
    return member


@st.composite
def folders(draw: st.DrawFn, path: str = ".", depth: int = 0) -> list[Member]:
    """A folder and all below it, in the order that collect has; some files are hard links."""
    found = [
        directory(
            path,
            draw(st.integers(0, 0o7777)),
            uid=draw(ids),
            gid=draw(ids),
            pax=(draw(times),),
        )
    ]
    chosen = draw(st.lists(names, max_size=4 if depth else 6, unique=True))
    for name in sorted(chosen, key=os.fsencode):
        at = f"{path}/{name}"
        kind = draw(st.integers(0, 9))
        if kind < 3 and depth < 3:
            found += draw(folders(at, depth + 1))
        elif kind == 3 and (files := [m for m in found if m.kind not in (b"1", b"5")]):
            found.append(Member(at, tarfile.LNKTYPE, link=draw(st.sampled_from(files)).name))
        else:
            found.append(replace(draw(leaves()), name=at))
    return found


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(folders(), st.sampled_from(["mapped-file", "mapped-xattr"]))
def test_there_and_back(wanted: list[Member], model: str) -> None:
    raw = tar_bytes(wanted)
    with tempfile.TemporaryDirectory() as folder:
        tree = os.path.join(folder, "tree")
        stage(io.BytesIO(raw), tree, security_model=model)
        out = io.BytesIO()
        report = collect(tree, out)
        assert not report.warnings
        assert members(out.getvalue()) == members(raw)
        assert list(members(out.getvalue())) == list(members(raw))
        assert not check(tree)
        stage(io.BytesIO(out.getvalue()), tree)
        again = io.BytesIO()
        collect(tree, again)
        assert again.getvalue() == out.getvalue()
        assert not check(tree)


def big(path: Path, count: int = 3000) -> Path:
    path.write_bytes(tar_bytes([Member(f"d{n % 40}/f{n}", data=b"x" * 3000) for n in range(count)]))
    return path


def background(*argv: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "guestctl", "virtfs", *map(str, argv)])


def test_killed_while_staging(tmp_path):
    source = big(tmp_path / "s.tar")
    for delay in (0.15, 0.25, 0.35):
        tree = tmp_path / f"t{delay}"
        process = background("stage", source, tree)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=120)
        if tree.exists() and is_partial(tree):
            with pytest.raises(TreeError, match="partly staged"):
                collect(tree, tmp_path / "o.tar")
            assert not (tmp_path / "o.tar").exists()
        stage(source, tree)
        assert not is_partial(tree) and not check(tree)
        assert len(os.listdir(tree)) == 42


def test_killed_while_collecting(tmp_path):
    stage(big(tmp_path / "s.tar"), tmp_path / "tree")
    out = tmp_path / "out" / "o.tar"
    out.parent.mkdir()
    for delay in (0.1, 0.2, 0.3):
        process = background("collect", tmp_path / "tree", out)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        if process.wait(timeout=120) == 0:
            break
        if out.exists():  # renamed, and then killed
            assert len(members(out)) == 3041
            out.unlink()


def test_interrupted_by_the_user(tmp_path):
    source = big(tmp_path / "s.tar", 6000)
    process = background("stage", source, tmp_path / "tree")
    deadline = time.monotonic() + 120
    while not (tmp_path / "tree" / "d1").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) != 0
    assert is_partial(tmp_path / "tree")


MACHINES = (
    {"LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "1", "processors": "1", "umask": "63"},
    {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "2", "processors": "9", "umask": "0"},
)
ANYWHERE = """
import os, sys
os.umask(int(os.environ["umask"]))
os.cpu_count = lambda: int(os.environ["processors"])
from guestctl.translate import collect, stage
for word, one, other in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
    {"stage": stage, "collect": collect}[word](one, other)
"""


def test_staged_on_one_machine_and_collected_on_another(tmp_path):
    """Locale, time zone, umask, processors, hashes, file system: nothing of these shows in it."""
    chance = random.Random(3)
    # Without attributes, which tmpfs has since Linux 6.6 only.
    wanted = [member for member in every_type() if "attribute" not in member.name]
    wanted += [Member("large", data=chance.randbytes(9 << 17)), directory("m")]
    wanted += [Member(f"m/{n}\udcff", data=chance.randbytes(n)) for n in range(200)]
    (tmp_path / "s.tar").write_bytes(tar_bytes(wanted))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        trees = [Path(memory, "tree"), tmp_path / "tree"]
        for machine, tree in zip(MACHINES, trees, strict=True):
            anywhere(machine, "stage", tmp_path / "s.tar", tree)
        # Carried over, names are listed in another order.
        carried = [tmp_path / "carried", Path(memory, "carried")]
        for tree, copy in zip(trees, carried, strict=True):
            subprocess.run(["cp", "-a", tree, copy], check=True)
        sums = set()
        for number, tree in enumerate([*trees, *carried]):
            kinds = ("tar", "tar.gz", "tar.xz", "tar.zst")
            outs = [tmp_path / f"{number}.{kind}" for kind in kinds]
            jobs = [part for out in outs for part in ("collect", tree, out)]
            anywhere(MACHINES[(number + number // 2 + 1) % 2], *jobs)
            sums.add(tuple(hashlib.sha256(out.read_bytes()).digest() for out in outs))
    assert len(sums) == 1
    assert members(tmp_path / "0.tar") == members(tmp_path / "s.tar")


def anywhere(machine: dict[str, str], *jobs: object) -> None:
    argv = [sys.executable, "-c", ANYWHERE, *map(str, jobs)]
    subprocess.run(argv, check=True, timeout=300, env={**os.environ, **machine})


@pytest.mark.parametrize("older", [[], [b"older"]])
def test_interrupted_while_collecting(tmp_path, older):
    """Nothing is left of the archive, under any name; one that was there stays as it was."""
    # What is to be compressed takes a second or two, wherever it is interrupted.
    wanted = [Member(f"f{n}", data=os.urandom(1 << 20)) for n in range(40)]
    stage(io.BytesIO(tar_bytes(wanted)), tmp_path / "tree")
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "o.tar.gz"
    for data in older:
        out.write_bytes(data)
    process = background("collect", tmp_path / "tree", out)
    try:
        until(lambda: len(os.listdir(out.parent)) > len(older) or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) != 0
    finally:
        process.kill()
        process.wait()
    assert [path.read_bytes() for path in out.parent.iterdir()] == older


class Full(io.RawIOBase):
    """A file on a full disk."""

    def __init__(self, room: int) -> None:
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


def test_a_stream_that_is_full(tmp_path):
    stage(big(tmp_path / "s.tar", 200), tmp_path / "tree")
    with pytest.raises((OSError, GuestctlError)):
        collect(tmp_path / "tree", Full(100_000))


LIMITED = """
import resource, sys, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
from guestctl.translate import collect, stage
from guestctl.errors import GuestctlError
try:
    (collect if sys.argv[1] == "collect" else stage)(sys.argv[2], sys.argv[3])
except (OSError, GuestctlError) as error:
    print(type(error).__name__, error)
    sys.exit(9)
"""


def limited(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.zst"])
def test_a_write_that_fails_leaves_no_archive(tmp_path, kind):
    data = [Member("f", data=os.urandom(1_000_000))]
    stage(io.BytesIO(tar_bytes(data)), tmp_path / "tree")
    (tmp_path / "out").mkdir()
    done = limited("collect", tmp_path / "tree", tmp_path / "out" / f"o.{kind}")
    assert done.returncode == 9, done
    assert not os.listdir(tmp_path / "out")


def test_a_write_that_fails_leaves_a_marked_tree(tmp_path):
    (tmp_path / "s.tar").write_bytes(tar_bytes([Member("f", data=os.urandom(1_000_000))]))
    done = limited("stage", tmp_path / "s.tar", tmp_path / "tree")
    assert done.returncode == 9 and "TreeError" in done.stdout and " f: " in done.stdout
    assert is_partial(tmp_path / "tree")


def test_memory_stays_flat(tmp_path):
    """Many entries and a large file that does not compress: 8,000 entries and 200 MB."""
    code = (
        "import sys; from guestctl.translate import stage, collect\n"
        "stage(sys.argv[1], sys.argv[2]); collect(sys.argv[2], sys.argv[3])\n"
        "stage(sys.argv[3], sys.argv[2] + '2')\n"
        "print(*[line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line])"
    )
    wanted = [Member(f"d{n % 400}/f{n}", data=b"x") for n in range(8000)]
    with open(tmp_path / "s.tar", "wb") as out:
        out.write(tar_bytes(wanted, end=False))
        info = tarfile.TarInfo("large")
        info.size = 200 << 20
        out.write(info.tobuf())
        block = os.urandom(4 << 20)  # no encoder looks back that far
        for _ in range(50):
            out.write(block)
        out.write(bytes(1024))
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "s.tar", tmp_path / "t", tmp_path / "o.tar.zst"],
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert int(done.stdout) < 100 * 1024
