"""Systems put together from artifacts: what stands, what is told, and the same bytes each time."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from guestctl.builder.manifest import files_of
from guestctl.errors import ArchiveError
from guestctl.system.assemble import Part, assemble, collisions

Row = tuple[str, bytes, int, int, object]


def part(path: Path, *rows: Row) -> Part:
    """An artifact of (name, type, mode, uid, what)."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, mode, uid, what in rows:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.uid, entry.gid, entry.mtime = kind, mode, uid, 0, 7
            data = what if isinstance(what, bytes) else b""
            entry.size = len(data)
            if isinstance(what, str):
                entry.linkname = what
            if isinstance(what, tuple):
                entry.devmajor, entry.devminor = what
            tar.addfile(entry, io.BytesIO(data))
    return Part(path.stem, path, list(files_of(path)))


def folder(name: str, mode: int = 0o755, uid: int = 0) -> Row:
    return (name, tarfile.DIRTYPE, mode, uid, None)


def file(name: str, data: bytes = b"", mode: int = 0o644, uid: int = 0) -> Row:
    return (name, tarfile.REGTYPE, mode, uid, data)


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    return [
        part(
            tmp_path / "one.tar",
            folder("."), folder("bin"), file("bin/su", b"one", 0o4755), file("bin/same", b"same"),
            ("bin/sh", tarfile.SYMTYPE, 0o777, 0, "su"),
        ),
        part(
            tmp_path / "two.tar",
            folder(".", 0o700), folder("bin"), file("bin/same", b"same"), file("bin/su", b"two"),
            folder("dev"), ("dev/console", tarfile.CHRTYPE, 0o620, 0, (5, 1)),
        ),
    ]  # fmt: skip


def test_parts_go_over_each_other_and_keep_what_they_are(parts: list[Part], tmp_path: Path) -> None:
    report = assemble(parts, tmp_path / "rootfs.tar")
    with tarfile.open(tmp_path / "rootfs.tar") as tar:
        found = {entry.name.removeprefix("./"): entry for entry in tar}
        su = tar.extractfile(found["bin/su"])
        assert su is not None
        assert su.read() == b"two"
    assert report.entries == len(found) == 7
    assert (found["bin/su"].mode, found["bin/sh"].linkname) == (0o644, "su")
    console = found["dev/console"]
    assert (console.type, console.devmajor, console.mode) == (tarfile.CHRTYPE, 5, 0o620)


def test_what_two_parts_have_differently_is_told(parts: list[Part], tmp_path: Path) -> None:
    (only,) = assemble(parts, tmp_path / "rootfs.tar").collisions
    assert (only.path, only.first, only.last) == ("bin/su", "one", "two")
    assert only.differ == ("mode", "sha256")
    assert str(only) == "bin/su: two replaces that of one (mode, sha256)"


def test_folders_are_shared_unless_owner_or_mode_differ(tmp_path: Path) -> None:
    one = part(tmp_path / "one.tar", folder("tmp", 0o1777), folder("home"), folder("lib"))
    two = part(
        tmp_path / "two.tar", folder("tmp"), folder("home"), ("lib", tarfile.SYMTYPE, 0o777, 0, "x")
    )
    found = {each.path: each.differ for each in collisions([one, two])}
    assert found == {"tmp": ("mode",), "lib": ("type", "mode", "target")}


def test_the_same_parts_give_the_same_bytes(parts: list[Part], tmp_path: Path) -> None:
    for name in ("first.tar", "second.tar"):
        assemble(parts, tmp_path / name)
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()


def test_a_broken_part_leaves_nothing(parts: list[Part], tmp_path: Path) -> None:
    parts[1].archive.write_bytes(parts[1].archive.read_bytes()[:700])
    with pytest.raises(ArchiveError):
        assemble(parts, tmp_path / "rootfs.tar")
    assert {path.name for path in tmp_path.iterdir()} == {"one.tar", "two.tar"}
