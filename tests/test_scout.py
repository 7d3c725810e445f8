"""Collecting with a scout: the same bytes, whatever it knows and wherever it stops."""

from __future__ import annotations

import io
import os
import select
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from guestctl import companion
from guestctl.errors import TreeError
from guestctl.translate import collect, stage
from guestctl.tree import reader, scout
from guestctl.tree.walk import GuideLost
from tests.corpus import Handmade, Member, directory, every_type, hardlink, tar_bytes
from tests.handles import handles, left_open
from tests.test_translate_laws import folders


class Always(companion.Companion):
    """One that is waited for, so that it guides small trees too."""

    def ready(self) -> bool:
        if not self._ready:
            assert select.select([self.socket], [], [], 20)[0]
        return super().ready()


@pytest.fixture(params=[0, 1 << 15], ids=["tells", "reads"])
def guided(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[bytes]]:
    """A scout from the first folder on, which reads files below a size; gives those that it told
    of, or of files that it read the last of each run, as often as there were files."""
    told: list[bytes] = []
    plain, several = reader.TreeReader._plain, reader.Several

    def noted(self, level, name, at, known):
        told.append(at)
        return plain(self, level, name, at, known)

    class Noted(several):
        def __init__(self, path, count, content):
            told.extend([path] * count)
            super().__init__(path, count, content)

    monkeypatch.setattr(companion, "Companion", Always)
    monkeypatch.setattr(scout, "_FIRST", 1)
    monkeypatch.setattr(scout, "_SMALL", request.param)
    monkeypatch.setattr(reader.TreeReader, "_plain", noted)
    monkeypatch.setattr(reader, "Several", Noted)
    yield told


def bytes_of(tree: Path, **options: object) -> tuple[bytes, tuple[str, ...]]:
    """The same to a stream and to a file, which are written in different ways."""
    out = io.BytesIO()
    report = collect(tree, out, **options)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        assert collect(tree, f"{folder}/out.tar", **options) == report  # type: ignore[arg-type]
        assert Path(folder, "out.tar").read_bytes() == out.getvalue()
    return out.getvalue(), report.warnings


def alike(tree: Path, told: list[bytes], **options: object) -> tuple[str, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scout, "_FIRST", 1 << 40)
        without = bytes_of(tree, **options)
        assert not told
    assert bytes_of(tree, **options) == without
    assert told or options.get("path") == "empty"
    return without[1]


def test_every_type(tmp_path, guided):
    (tmp_path / "s.tar").write_bytes(tar_bytes(every_type()))
    stage(tmp_path / "s.tar", tmp_path / "tree", into="a")
    assert not alike(tmp_path / "tree", guided)
    guided.clear()
    assert not alike(tmp_path / "tree", guided, path="a", mtime=1_000_000_000)


def test_a_broken_tree_gives_the_same_warnings(tmp_path, guided):
    made = Handmade(tmp_path / "tree")
    made.folder("d")
    for name in ("a", "b", "c", "e", "f"):
        made.file(f"d/{name}", data=name.encode())
    made.text("d/a", b"virtfs.uid=3\n")
    made.meta("d/b").unlink()
    made.text("d/c", b"virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=420\n")
    os.symlink("/etc/passwd", tmp_path / "tree/d/host")
    os.link(tmp_path / "tree/d/e", tmp_path / "tree/d/linked")
    assert len(alike(tmp_path / "tree", guided)) >= 4


def test_what_is_kept_aside(tmp_path, guided):
    wanted = [
        directory("d"),
        Member("d/ping", data=b"p", pax=(("SCHILY.xattr.security.capability", "cap"),)),
        Member("d/user", data=b"u", pax=(("SCHILY.xattr.user.colour", "blue"),)),
        Member("d/z", data=b"z"),
    ]
    stage(io.BytesIO(tar_bytes(wanted)), tmp_path / "tree")
    alike(tmp_path / "tree", guided)
    assert b"d/z" in guided and b"d/ping" not in guided
    assert b"security.capability=cap" in bytes_of(tmp_path / "tree")[0]


def test_a_hostile_tree_is_refused_as_ever(tmp_path, guided):
    made = Handmade(tmp_path / "tree")
    made.folder("d")
    made.file("d/a", data=b"a")
    made.attributes("d/a", 0o40755)
    with pytest.raises(TreeError, match="says directory, but it is a file"):
        bytes_of(tmp_path / "tree")
    made.meta("d/a").unlink()
    os.mkfifo(made.meta("d/a"))
    with pytest.raises(TreeError, match="d/a: its metadata is no regular file"):
        bytes_of(tmp_path / "tree")


@pytest.mark.parametrize("after", [0, 1, 7, 100, 250])
def test_a_scout_that_is_lost(tmp_path, guided, monkeypatch, after):
    """The walk goes on alone from wherever it was, deep down too."""
    deep = "p/" * 130
    wanted = [Member(f"d{n % 9}/e{n % 5}/f{n}", data=b"%d" % n) for n in range(200)]
    wanted += [Member(f"{deep}f", data=b"f"), Member("p/q", data=b"q"), Member("p/p/q")]
    stage(io.BytesIO(tar_bytes(wanted)), tmp_path / "tree")
    following = scout.Scout.next
    count = 0

    def tired(self):
        nonlocal count
        count += 1
        if count > after:
            raise GuideLost
        return following(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scout, "_FIRST", 1 << 40)
        without = bytes_of(tmp_path / "tree")
    monkeypatch.setattr(scout.Scout, "next", tired)
    assert bytes_of(tmp_path / "tree") == without
    assert count >= after + 1


def test_a_scout_that_dies(tmp_path, guided, monkeypatch):
    wanted = [Member(f"d{n % 40}/f{n}", data=b"%d" % n) for n in range(4000)]
    wanted.append(hardlink("x", "d0/f0"))
    stage(io.BytesIO(tar_bytes(wanted)), tmp_path / "tree")
    begin = scout.Scout.begin

    def doomed(self, top, after):
        begin(self, top, after)
        assert select.select([self._companion.socket], [], [], 20)[0]
        self._companion._process.kill()
        self._companion._process.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scout, "_FIRST", 1 << 40)
        without = bytes_of(tmp_path / "tree")
    monkeypatch.setattr(scout.Scout, "begin", doomed)
    assert bytes_of(tmp_path / "tree") == without
    assert 0 < len(guided) < 8000


@pytest.mark.parametrize("guided", [0], indirect=True)
def test_a_file_that_changed_since_is_looked_at_anew(tmp_path, guided, monkeypatch):
    stage(io.BytesIO(tar_bytes([Member("d/a", data=b"a"), Member("d/b")])), tmp_path / "tree")
    following = scout.Scout.next

    def late(self):
        found = following(self)
        if found and found[2]:
            (tmp_path / "tree/d" / os.fsdecode(found[0])).write_bytes(b"longer now")
        return found

    monkeypatch.setattr(scout.Scout, "next", late)
    out = io.BytesIO()
    collect(tmp_path / "tree", out)
    data = out.getvalue()
    assert data.count(b"longer now") == 2


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(folders())
def test_the_law(guided, wanted: list[Member]) -> None:
    open_before = handles()
    with tempfile.TemporaryDirectory() as folder:
        stage(io.BytesIO(tar_bytes(wanted)), folder + "/tree")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scout, "_FIRST", 1 << 40)
            without = bytes_of(Path(folder) / "tree")
        assert bytes_of(Path(folder) / "tree") == without
    assert not left_open(open_before)
