"""Input that means harm, beyond the numbered cases: a clear refusal, and nothing else happens.

Names and links that lead out: test_translate_stage.py, cases 23 to 28. Metadata: cases 2 and 18 in
test_translate_collect.py. Trees that change: test_translate_races.py. Bombs and archives that are
cut short: test_archive.py.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guestctl.errors import ArchiveError
from guestctl.translate import check, collect, is_partial, repair, stage
from tests.corpus import Handmade, Member, directory, hardlink, symlink, tar_bytes
from tests.test_translate_stage import refused

ESCAPES = ["..", "../outside", "/", "d/..", "."]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_bytes(b"untouched")
    return tmp_path / "tree"


@pytest.mark.parametrize("model", ["mapped-file", "mapped-xattr"])
@pytest.mark.parametrize("target", ESCAPES)
@pytest.mark.parametrize("follow", [False, True])
def test_types_that_change_under_a_folder(
    tree: Path, target: str, model: str, follow: bool
) -> None:
    """A folder that was opened a moment ago becomes a link: what follows does not go through it."""
    options = {"security_model": model, "follow_dirs": follow}
    wanted = [directory("d"), directory("e"), directory("e/f"), symlink("d", target)]
    if follow and target in ("..", "/", "."):  # it leads no higher than the root of the tree
        stage(io.BytesIO(tar_bytes([*wanted, Member("d/x", data=b"new")])), tree, **options)
        assert (tree / "x").read_bytes() == b"new"
    else:
        refused(tree, *wanted, Member("d/x", data=b"new"), words=("d/x",), **options)
    assert (tree.parent / "outside" / "x").read_bytes() == b"untouched"


@pytest.mark.parametrize("model", ["mapped-file", "mapped-xattr"])
@pytest.mark.parametrize("target", ESCAPES)
def test_another_name_of_a_link_is_a_link(tree: Path, target: str, model: str) -> None:
    links = [directory("d"), symlink("a", target), hardlink("b", "a"), hardlink("d/c", "b")]
    for through in ("b/x", "d/c/x"):
        refused(tree, *links, Member(through), words=(through,), security_model=model)
        refused(tree, *links, hardlink("y", through), words=("y",), security_model=model)


@pytest.mark.parametrize("kind", ["huge", "fifo", "directory", "symlink"])
@pytest.mark.parametrize("where", ["sub", "file"])
def test_hostile_metadata_is_found_mended_and_not_written_through(
    tmp_path: Path, kind: str, where: str
) -> None:
    made = Handmade(tmp_path / "tree")
    made.folder("sub")
    made.file("file")
    (tmp_path / "real").write_bytes(b"untouched")
    meta = made.meta(where)
    meta.unlink()
    {
        "huge": lambda: meta.write_bytes(b"virtfs.uid=0\n" * 1000),
        "fifo": lambda: os.mkfifo(meta),
        "directory": meta.mkdir,
        "symlink": lambda: meta.symlink_to(tmp_path / "real"),
    }[kind]()
    assert {p.kind for p in check(made.root) if p.path} >= {"unsafe-metadata"}
    if kind != "directory":  # that one is refused by name
        stage(io.BytesIO(tar_bytes([directory("sub"), Member("file", data=b"n")])), made.root)
        assert not check(made.root)
    else:
        assert all(problem.mended for problem in repair(made.root))
        assert not check(made.root)
    assert (tmp_path / "real").read_bytes() == b"untouched"


# The fields of a header, by offset; a flipped bit in any of them is seen.
FIELDS = {
    "name": 0,
    "mode": 101,
    "uid": 110,
    "gid": 118,
    "size": 130,
    "mtime": 140,
    "checksum": 150,
    "type": 156,
    "link": 158,
    "magic": 258,
    "version": 264,
    "owner": 266,
    "group": 298,
    "major": 330,
    "minor": 338,
    "prefix": 346,
    "padding": 505,
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("member", [0, 1, 3])
def test_a_flipped_bit_in_a_header(tree: Path, field: str, member: int) -> None:
    """Of a folder's header, of an extended header, and of the file's that it belongs to."""
    whole = bytearray(tar_bytes([directory("d"), Member("d/f", pax=(("mtime", "1.5"),))]))
    whole[member * 512 + FIELDS[field]] ^= 1
    with pytest.raises(ArchiveError, match=r"checksum|neither tar"):
        stage(io.BytesIO(bytes(whole)), tree)
    assert is_partial(tree) and set(os.listdir(tree.parent)) == {"outside", "tree"}


@pytest.mark.parametrize("squeeze", [gzip.compress, lzma.compress, bz2.compress])
def test_a_flipped_bit_in_a_compressed_archive(tmp_path: Path, squeeze) -> None:
    """At its beginning, in its middle, in its sums: refused, or no byte of content differs."""
    data = os.urandom(3000)
    whole = squeeze(tar_bytes([Member("f", data=data)]))
    step = max(1, len(whole) // 60)
    read = 0
    for at in (*range(0, len(whole), step), *range(len(whole) - 16, len(whole))):
        broken = bytearray(whole)
        broken[at] ^= 0x10
        tree = tmp_path / f"tree{at}"
        try:
            stage(io.BytesIO(bytes(broken)), tree)
        except ArchiveError as error:
            assert "\n" not in str(error)
        else:  # a gzip header has fields that mean nothing
            read += 1
            assert (tree / "f").read_bytes() == data
    assert read < 12


LIMITS = [
    ("--max-entries", 3, [Member(f"f{number}") for number in range(9)], "f3"),
    ("--max-bytes", 999, [Member("f", data=bytes(500)), Member("g", data=bytes(500))], "g"),
    ("--max-depth", 4, [Member("a/b/c/d/e/f")], "a/b/c/d/e/f"),
]


@pytest.mark.parametrize(("option", "value", "wanted", "entry"), LIMITS)
def test_limits_on_the_command_line(
    tmp_path: Path, option: str, value: int, wanted: list[Member], entry: str
) -> None:
    """Each names the entry at which it struck; the tree is marked; a higher limit lets it pass."""
    (tmp_path / "a.tar").write_bytes(tar_bytes(wanted))
    argv = [sys.executable, "-m", "guestctl", "virtfs", "stage", "a.tar", "tree", option]
    for limit, status in ((value, 1), (value + 10000, 0)):
        done = subprocess.run(
            [*argv, str(limit)],
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
            check=False,
            text=True,
        )
        assert done.returncode == status, done.stderr
        assert is_partial(tmp_path / "tree") == bool(status)
        assert not status or f"a.tar: {entry}: more than {value} " in done.stderr
    assert collect(tmp_path / "tree", io.BytesIO()).entries > 1


def test_the_ratio_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(
        gzip.compress(tar_bytes([Member("f", data=bytes(280 << 20))]))
    )
    argv = [sys.executable, "-m", "guestctl", "virtfs", "stage", "a.tar.gz", "tree", "--max-ratio"]
    done = subprocess.run(
        [*argv, "100"], cwd=tmp_path, capture_output=True, timeout=100, check=False, text=True
    )
    assert done.returncode == 1 and "more than 100 times its size" in done.stderr
    assert is_partial(tmp_path / "tree")
