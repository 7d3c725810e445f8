"""Archives that ask for more than they bring, say what cannot be, or go on after their end."""

from __future__ import annotations

import gzip
import io
import itertools
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from guestctl.archive import sparse
from guestctl.archive.sparse import HOLE, REGIONS_MAX, data_regions
from guestctl.errors import ArchiveError
from guestctl.translate import check, is_partial, list_tree, stage
from tests.corpus import Member, cpio_newc, hardlink, tar_bytes


def put(data: bytes, tree: Path, **options: object) -> tuple[str, ...]:
    return stage(io.BytesIO(data), tree, **options).warnings  # type: ignore[arg-type]


def names(tree: Path) -> set[bytes]:
    return {entry.path for entry in list_tree(tree)}


def headed(kind: bytes, body: bytes) -> bytes:
    """An extended header."""
    info = tarfile.TarInfo("extended")
    info.type, info.size = kind, len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)


def record(key: str, value: str) -> bytes:
    line = f" {key}={value}\n".encode()
    size = len(line) + len(str(len(line)))
    return str(size + (len(str(size)) > len(str(len(line))))).encode() + line


def sparse_member(fields: dict[str, str], payload: bytes = b"") -> bytes:
    pax = headed(b"x", b"".join(record(f"GNU.sparse.{key}", fields[key]) for key in fields))
    info = tarfile.TarInfo("f")
    info.size = len(payload)
    return pax + info.tobuf(tarfile.USTAR_FORMAT) + payload + bytes(-len(payload) % 512)


TINY = b"".join(b"10 %04x=x\n" % (number % 65536) for number in range(200_000))
DISTINCT = [b"".join(b"11 %05x=x\n" % (n + 900 * turn) for n in range(900)) for turn in range(3)]
LARGE = [record(f"k{number}", "v" * (9 << 20)) for number in range(3)]


@pytest.mark.parametrize(
    "archive",
    [
        headed(b"x", TINY),
        headed(b"g", TINY),
        b"".join(headed(b"x", body) for body in DISTINCT),
        b"".join(headed(b"g", body) for body in DISTINCT),
        b"".join(headed(b"x", body) for body in LARGE),
        b"".join(headed(b"g", body) for body in LARGE),
    ],
    ids=["tiny x", "tiny g", "many x", "many g", "large x", "large g"],
)
def test_extended_headers_are_bounded(tmp_path: Path, archive: bytes) -> None:
    """In number and in bytes, however many there are: they are held until the member comes."""
    with pytest.raises(ArchiveError, match=r"pax records|extended headers"):
        put(archive + tar_bytes([Member("f")]), tmp_path / "tree")


def test_many_global_headers_of_one_keyword_are_fine(tmp_path: Path) -> None:
    archive = b"".join(headed(b"g", record("comment", f"{number}")) for number in range(3000))
    put(archive + tar_bytes([Member("f")]), tmp_path / "tree")


def test_maps_of_sparse_files_are_bounded(tmp_path: Path) -> None:
    count = REGIONS_MAX + 1
    flat = [str(number) for at in range(count) for number in (at, 0)]
    lead = {"major": "1", "minor": "0", "realsize": str(count)}
    long_map = sparse_member(lead, "\n".join([str(count), *flat, ""]).encode().ljust(5 << 20))
    for archive in (
        sparse_member({"size": str(count), "map": ",".join(flat)}),
        long_map,
        sparse_member({"size": "9" * 20, "map": "0,0"}),
        sparse_member({"size": "9", "map": "0,0,1"}),
    ):
        with pytest.raises(ArchiveError, match=r"f: .*sparse"):
            put(archive + bytes(1024), tmp_path / "tree")


def test_a_long_map_of_a_sparse_file_is_read(tmp_path: Path) -> None:
    count = 100_000
    lines = "".join(f"{at}\n1\n" for at in range(0, 2 * count, 2))
    listed = f"{count}\n{lines}".encode()
    payload = listed + bytes(-len(listed) % 512) + b"x" * count
    fields = {"major": "1", "minor": "0", "realsize": str(2 * count)}
    put(sparse_member(fields, payload) + bytes(1024), tmp_path / "tree")
    assert (tmp_path / "tree/f").read_bytes() == b"x\0" * count


def test_a_file_of_too_many_holes_gets_a_coarser_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "REGIONS_MAX", 4)
    with open(tmp_path / "f", "w+b") as file:
        for at in (1, 3, 5, 7, 9, 11, 40, 42):
            os.pwrite(file.fileno(), b"data", at * HOLE)
        size = 43 * HOLE + 5
        file.truncate(size)
        regions = data_regions(file.fileno(), size)
        whole = (tmp_path / "f").read_bytes()
    assert regions is not None and len(regions) <= 4
    rebuilt = bytearray(size)
    for offset, length in regions:
        rebuilt[offset : offset + length] = whole[offset : offset + length]
    assert rebuilt == whole
    assert sorted(regions) == regions
    assert all(sum(one) < other[0] for one, other in itertools.pairwise(regions))


@pytest.mark.parametrize("squeeze", [bytes, gzip.compress, lzma.compress])
def test_what_follows_the_end_is_told(tmp_path: Path, squeeze: Callable[[bytes], bytes]) -> None:
    """Two archives in one file: other archivers leave out the second without a word."""
    one, other = tar_bytes([Member("one")]), tar_bytes([Member("other")])
    cpio = cpio_newc(("a", 0o100644, 1, 1, b"x"))
    for number, (data, told) in enumerate(
        (
            (one + other, True),
            (one + bytes(100_000), False),
            (one + b"x", True),
            (cpio + cpio, True),
            (cpio + bytes(100_000), False),
            (cpio + bytes(900_000) + b"x", True),
        )
    ):
        source = tmp_path / f"archive{number}"
        source.write_bytes(squeeze(data))
        report = stage(source, tmp_path / f"tree{number}")
        assert any("more follows" in line for line in report.warnings) == told, number
        assert put(squeeze(data), tmp_path / f"stream{number}") == tuple(
            line.replace(str(source), "the archive") for line in report.warnings
        )
        assert len(names(tmp_path / f"tree{number}")) == 2


def test_a_hole_behind_the_end_is_not_read(tmp_path: Path) -> None:
    source = tmp_path / "a.tar"
    source.write_bytes(tar_bytes([Member("f")]))
    os.truncate(source, 1 << 42)
    assert not stage(source, tmp_path / "tree").warnings


def test_hard_links_that_wait_for_each_other(tmp_path: Path) -> None:
    chain = [hardlink(f"l{number}", f"l{number + 1}") for number in range(50)]
    put(tar_bytes([*chain, hardlink("m", "l7"), Member("l50", data=b"x")]), tmp_path / "tree")
    assert (tmp_path / "tree/l50").stat().st_nlink == 52
    assert not check(tmp_path / "tree")
    with pytest.raises(ArchiveError, match="a hard link to b, which is not there"):
        put(tar_bytes([hardlink("a", "b"), hardlink("b", "a")]), tmp_path / "circle")


@pytest.mark.parametrize("model", ["mapped-file", "mapped-xattr"])
@pytest.mark.parametrize(
    "name", [b"user.a\0b", b"user.", b"", b"security.\0", b"user." + b"n" * 300]
)
def test_attributes_of_impossible_names(tmp_path: Path, name: bytes, model: str) -> None:
    key = "SCHILY.xattr." + name.decode()
    archive = headed(b"x", record(key, "v")) + tar_bytes([Member("f")])
    (warning,) = put(archive, tmp_path / "tree", security_model=model)
    assert warning.startswith("f: ")
    assert names(tmp_path / "tree") == {b"", b"f"}


@pytest.mark.parametrize(
    "who", ["99999999999", "4294967295", "\N{SUPERSCRIPT TWO}", "jenny:rwx:99999999999"]
)
def test_impossible_ids_in_acls(tmp_path: Path, who: str) -> None:
    who = who if ":" in who else f"{who}:rwx"
    archive = headed(b"x", record("SCHILY.acl.access", f"user::rwx,user:{who}"))
    (warning,) = put(
        archive + tar_bytes([Member("f")]), tmp_path / "tree", security_model="mapped-xattr"
    )
    assert warning.startswith("f: ") and "id" in warning


def test_a_package_within_a_package(tmp_path: Path) -> None:
    data = tar_bytes([Member("f")])
    for _ in range(2):
        data = b"!<arch>\n" + b"data.tar".ljust(48) + b"%-10d`\n" % len(data) + data
    with pytest.raises(ArchiveError, match="package within a package"):
        put(data, tmp_path / "tree")


def test_a_cpio_cut_short_names_the_last_member(tmp_path: Path) -> None:
    whole = cpio_newc(("a", 0o100644, 1, 1, b"x"), ("b", 0o100644, 2, 1, b"y" * 5000))
    for cut in (whole[: whole.index(b"TRAILER!!!") - 110], whole[:-5000]):
        with pytest.raises(ArchiveError, match=r"cut short after [ab]"):
            put(cut, tmp_path / "tree")
        assert is_partial(tmp_path / "tree")


@pytest.mark.parametrize(
    ("options", "window"),
    [("", 0), ("-19", 0), ("--ultra -20", 0), ("--long=26", 64), ("--long=31", 2048)],
)
def test_a_zstd_window_beyond_bounds_is_refused(tmp_path: Path, options: str, window: int) -> None:
    """Of a stream, whose size is not known, and of a file that is one segment."""
    (tmp_path / "a.tar").write_bytes(tar_bytes([Member("f", data=b"x" * 100_000)]))
    argv = ["zstd", *options.split(), "-c"]
    for number, source in enumerate((["a.tar"], [])):
        whole = subprocess.run(
            [*argv, *source],
            cwd=tmp_path,
            input=(tmp_path / "a.tar").read_bytes(),
            check=True,
            capture_output=True,
            timeout=60,
        ).stdout
        tree = tmp_path / f"tree{number}"
        if not window or source:  # of a small file all is known
            put(whole, tree)
            continue
        with pytest.raises(ArchiveError, match=f"window of {window} MiB") as caught:
            put(whole, tree)
        assert "--long=31" in caught.value.hint


def test_no_program_is_started_to_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libarchive has filters that are programs: an archive in an archive must not reach them."""
    for name in ("lrzip", "lzop", "grzip"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n: >{tmp_path}/started\nexec cat\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for magic in (
        b"LRZI\0\6" + bytes(600),
        b"\x89LZO\0\r\n\x1a\n" + bytes(600),
        b"GRZipII\0\2\4:)" + bytes(600),
    ):
        whole = subprocess.run(
            ["zstd", "-c"], input=magic, check=True, capture_output=True, timeout=60
        ).stdout
        with pytest.raises(ArchiveError, match="neither tar"):
            put(whole, tmp_path / "tree")
    assert not (tmp_path / "started").exists()
