"""Staging with a companion: the same trees, whatever it does and whenever."""

from __future__ import annotations

import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from guestctl import companion
from guestctl.errors import GuestctlError, TreeError
from guestctl.translate import check, list_tree, stage
from guestctl.tree import filler
from guestctl.tree.state import hold_tree, is_partial
from tests.corpus import Member, directory, every_type, hardlink, symlink, tar_bytes
from tests.handles import handles, left_open
from tests.test_translate_laws import folders


class Always(companion.Companion):
    """One that is waited for, so that small archives are handed over from the first file."""

    def ready(self) -> bool:
        if not self._ready:
            assert select.select([self.socket], [], [], 20)[0]
        return super().ready()


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Hands over from the first file on; gives what was handed over."""
    taken: list[bytes] = []
    put = filler.Filler.put

    def noted(self, path, dir_fd, meta, job):
        taken.append(path + b"/" + job[0])
        put(self, path, dir_fd, meta, job)

    monkeypatch.setattr(companion, "Companion", Always)
    monkeypatch.setattr(filler, "_FIRST", 1)
    monkeypatch.setattr(filler, "_WORTH", -1)
    monkeypatch.setattr(filler.Filler, "put", noted)
    yield taken


def seen(tree: Path) -> list[tuple[object, ...]]:
    """All that the guest sees of a tree, and what is on the host."""
    found: list[tuple[object, ...]] = [
        (e.path, e.mode, e.uid, e.gid, e.mtime, e.size, e.target, e.link, e.rdev, e.xattrs)
        for e in list_tree(tree)
    ]
    for folder, names, files in os.walk(os.fsencode(tree)):
        for name in sorted(names + files):
            at = os.path.join(folder, name)
            info = os.lstat(at)
            data = b"" if os.path.isdir(at) else Path(os.fsdecode(at)).read_bytes()
            links = 0 if os.path.isdir(at) else info.st_nlink
            found.append((os.path.relpath(at, os.fsencode(tree)), info.st_mode, links, data))
    return sorted(found, key=repr)


def alike(tmp_path: Path, taken: list[bytes], *archives: list[Member]) -> None:
    """Stages the archives one over the other, with a companion and without."""
    for number, wanted in enumerate(archives):
        (tmp_path / f"{number}.tar").write_bytes(tar_bytes(wanted))
        with open(tmp_path / f"{number}.tar", "rb") as plain:
            stage(plain, tmp_path / "without")  # a file object is read by the stage alone
        assert not taken
    for number in range(len(archives)):
        stage(tmp_path / f"{number}.tar", tmp_path / "with")
    assert taken
    assert seen(tmp_path / "with") == seen(tmp_path / "without")
    assert not check(tmp_path / "with")


def test_every_type(tmp_path, beside):
    alike(tmp_path, beside, list(every_type()))


def test_a_later_member_of_the_same_name_wins(tmp_path, beside):
    wanted = [
        directory("d"),
        Member("d/a", data=b"first"),
        Member("d/a", data=b"second", mode=0o600),
        Member("d/b", data=b"a file, then a link"),
        symlink("d/b", "a"),
        Member("d/c", data=b"a file, then a folder"),
        directory("d/c"),
        Member("d/c/inside", data=b"i"),
        Member("d/e", data=b"a file, then a hard link"),
        hardlink("d/e", "d/a"),
        symlink("d/f", "a"),
        Member("d/f", data=b"a link, then a file"),
        directory("d/g"),
        Member("d/g", data=b"a folder, then a file"),
        Member("d/h", data=b"a file, then too large for another process"),
        Member("d/h", data=bytes(2 << 20)),
        Member("d/h", data=b"and small again"),
        hardlink("x", "d/h"),
        Member("d/h", data=b"no longer that of x"),
    ]
    alike(tmp_path, beside, wanted)


def test_over_what_is_there(tmp_path, beside):
    one = [
        directory("./"),
        directory("d"),
        Member("d/a", data=b"1"),
        hardlink("d/b", "d/a"),
        directory("d/c"),
    ]
    two = [
        directory("./"),
        Member("d/a", data=b"22"),
        Member("d/b", mode=0),
        Member("d/c", data=b"3"),
    ]
    alike(tmp_path, beside, one, two, one)


def test_a_full_folder_is_not_replaced(tmp_path, beside):
    (tmp_path / "1.tar").write_bytes(tar_bytes([Member("d/a", data=b"1"), Member("e")]))
    (tmp_path / "2.tar").write_bytes(tar_bytes([Member("x"), Member("d", data=b"2")]))
    stage(tmp_path / "1.tar", tmp_path / "tree")
    with pytest.raises((GuestctlError), match=r"2\.tar: d: "):
        stage(tmp_path / "2.tar", tmp_path / "tree")
    assert is_partial(tmp_path / "tree")
    assert (tmp_path / "tree/d/a").read_bytes() == b"1"


def test_below_a_file_that_is_still_owed(tmp_path, beside):
    (tmp_path / "s.tar").write_bytes(tar_bytes([Member("d/a"), Member("d/a/b")]))
    with pytest.raises(GuestctlError, match="d/a is a file, not a directory"):
        stage(tmp_path / "s.tar", tmp_path / "tree")


def test_what_is_in_place_without_metadata(tmp_path, beside):
    wanted = [directory("d"), *(Member(f"d/{n}", data=b"new") for n in range(4))]
    (tmp_path / "s.tar").write_bytes(tar_bytes(wanted))
    tree = tmp_path / "tree"
    (tree / "d" / "1").mkdir(parents=True)
    (tree / "d" / "2").write_bytes(b"old")
    (tree / "d" / "3").symlink_to("/etc/passwd")
    stage(tmp_path / "s.tar", tree)
    assert [(tree / f"d/{n}").read_bytes() for n in range(4)] == [b"new"] * 4
    assert not check(tree)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(folders())
def test_the_law(beside, wanted: list[Member]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        beside.clear()
        path = Path(folder)
        (path / "s.tar").write_bytes(tar_bytes(wanted))
        with open(path / "s.tar", "rb") as plain:
            stage(plain, path / "without")
        stage(path / "s.tar", path / "with")
        assert seen(path / "with") == seen(path / "without")


def test_many_files_are_shared(tmp_path):
    """Without any help: the companion starts by itself, and both work."""
    wanted = [Member(f"d{n // 30}/f{n}", data=b"%d" % n * (n % 700)) for n in range(4000)]
    (tmp_path / "s.tar").write_bytes(tar_bytes(wanted))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    open_before = handles()
    stage(tmp_path / "s.tar", tmp_path / "tree")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime > before
    assert not left_open(open_before)
    assert all((tmp_path / "tree" / member.name).read_bytes() == member.data for member in wanted)
    assert not check(tmp_path / "tree")


def test_a_companion_that_is_lost(tmp_path, beside, monkeypatch):
    settle = filler.Filler.settle

    def killed(self):
        self._companion._process.kill()
        self._companion._process.wait()
        settle(self)

    monkeypatch.setattr(filler.Filler, "settle", killed)
    (tmp_path / "s.tar").write_bytes(tar_bytes([Member("a"), Member("b")]))
    with pytest.raises(TreeError, match="is lost"):
        stage(tmp_path / "s.tar", tmp_path / "tree")
    assert is_partial(tmp_path / "tree")


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
from guestctl.translate import stage
from guestctl.errors import GuestctlError
try:
    stage(sys.argv[1], sys.argv[2])
except GuestctlError as error:
    print(error)
    sys.exit(9)
"""


def test_a_write_that_fails_beside_names_the_file(tmp_path):
    wanted = [Member(f"d{n // 9}/f{n}", data=b"x") for n in range(1500)]
    wanted += [Member("large", data=bytes(400_000))]
    wanted += [Member(f"e{n // 9}/f{n}", data=b"x") for n in range(1500)]
    (tmp_path / "s.tar").write_bytes(tar_bytes(wanted))
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "s.tar", tmp_path / "tree"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 9, done
    assert " large: cannot be written: File too large" in done.stdout
    assert is_partial(tmp_path / "tree")


def test_the_lock_lasts_as_long_as_the_companion(tmp_path):
    """A stage that is killed leaves nobody behind who writes while the next one begins."""
    wanted = [Member(f"d{n // 40}/f{n}", data=b"x" * 2000) for n in range(4000)]
    (tmp_path / "s.tar").write_bytes(tar_bytes(wanted))
    argv = [sys.executable, "-m", "guestctl", "virtfs", "stage", tmp_path / "s.tar"]
    for number in range(2):
        tree = tmp_path / f"tree{number}"
        process = subprocess.Popen([*argv, tree])
        deadline = time.monotonic() + 120
        while not (tree / f"d{20 * (number + 1)}").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.wait(timeout=120)
        with hold_tree(tree, exclusive=True):
            first = sorted(tree.rglob("*"))
            time.sleep(0.05)
            assert sorted(tree.rglob("*")) == first
        stage(tmp_path / "s.tar", tree)
        assert not check(tree)
