"""The test archives of other archivers: libarchive's, Go's, CPython's, node-tar's. Each is read as
bsdtar reads it and comes back whole, or is refused for the reason that the table below gives.

They are fetched from Debian by SHA-256 (corpora.lock), as the demo's sources are.
"""

from __future__ import annotations

import binascii
import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guestctl.archive.reader import open_archive
from guestctl.errors import GuestctlError
from guestctl.packages import Archive
from guestctl.places import Places
from guestctl.recipe import parse_lock
from guestctl.translate import check, collect, stage
from tests.corpus import members

LOCK = Path(__file__).with_name("corpora.lock")
SUITES = ("bookworm", "bookworm-updates", "bookworm-security")

# Which files of the packages are archives of a kind that we read.
WANTED = {
    "libarchive": r"(libarchive|tar|cpio)/test/.*(tar|cpio|pax|tlz|txz|tgz|_ref)[^/]*\.uu$",
    "golang-1.19": r"src/archive/tar/testdata/.*\.tar(\.bz2)?$",
    "libpython3.11-testsuite": r"/test/(testtar.*\.tar(\.\w+)?|recursion\.tar)$",
    "node-tar": r"test/.*\.tar$",
}


def uudecoded(data: bytes) -> bytes:
    lines = data.split(b"\n")
    begin = next(number for number, line in enumerate(lines) if line.startswith(b"begin "))
    out = []
    for line in lines[begin + 1 :]:
        if line.startswith(b"end"):
            break
        try:
            out.append(binascii.a2b_uu(line))
        except binascii.Error:  # some encoders pad carelessly
            out.append(binascii.a2b_uu(line[: ((line[0] - 32) & 63) * 4 // 3 + 4]))
    return b"".join(out)


@pytest.fixture(scope="session")
def archives(places: Places, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All archives, unpacked from the packages, by package and name."""
    out = tmp_path_factory.mktemp("corpora")
    entries = parse_lock(LOCK.read_text(), str(LOCK))
    fetched = Archive(places.cache / "packages", suites=SUITES).fetch(entries)
    found: dict[str, Path] = {}
    for entry, path in fetched.items():
        wanted = re.compile(WANTED[entry.name])
        with open(path, "rb") as file, open_archive(file, entry.name) as reader:
            for member in reader:
                name = os.fsdecode(member.path)
                if not member.size or not wanted.search(name):
                    continue
                data = reader.stream.exactly(reader.left)
                reader.left = 0
                if name.endswith(".uu"):
                    name, data = name[:-3], uudecoded(data)
                place = out / entry.name / os.path.basename(name)
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(data)
                found[f"{entry.name}/{place.name}"] = place
    return found


def by_bsdtar(archive: Path) -> dict[bytes, tuple[object, ...]] | None:
    """What bsdtar reads; None if it refuses, or if it makes more than 64 MiB of it."""
    argv = ["bsdtar", "--format=gnutar", "-cf", "-", f"@{archive}"]
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as run:
        assert run.stdout is not None
        data = run.stdout.read(64 << 20)
        if run.stdout.read(1):
            run.kill()
    return members(data) if run.returncode == 0 else None


# Refused, and why: part of the message. All others are read.
END = "end marker is missing"
REFUSED = {
    # Golang's: broken on purpose, or cut off after the last member.
    "golang-1.19/gnu-incremental.tar": END,
    "golang-1.19/gnu-multi-hdrs.tar": END,
    "golang-1.19/issue10968.tar": "negative size",
    "golang-1.19/issue11169.tar": "cut short",
    "golang-1.19/issue12435.tar": "an extended header of",
    "golang-1.19/neg-size.tar": "negative size",
    "golang-1.19/nil-uid.tar": END,
    "golang-1.19/pax-bad-hdr-file.tar": "bad length of a pax record",
    "golang-1.19/pax-bad-hdr-large.tar.bz2": "pax",
    "golang-1.19/pax-bad-mtime-file.tar": "bad time",
    "golang-1.19/pax-multi-hdrs.tar": END,
    "golang-1.19/pax-nul-path.tar": "NUL byte",
    "golang-1.19/pax-path-hdr.tar": END,
    "golang-1.19/pax-pos-size-file.tar": END,
    "golang-1.19/ustar-file-reg.tar": END,
    "golang-1.19/writer-big-long.tar": "cut short",
    "golang-1.19/writer-big.tar": "cut short",
    # libarchive reads on where we would rather not guess.
    "libarchive/test_compat_gzip_2.tgz": "something else follows",
    "libarchive/test_compat_lzma_1.tlz": "corrupt compressed data",
    "libarchive/test_compat_plexus_archiver_tar.tar": "a lone block of zeros",
    "libarchive/test_compat_tar_hardlink_1.tar": "cut short",
    "libarchive/test_leading_slash.tar": "absolute",
    "libarchive/test_patterns_2.tar": "absolute",
    "libarchive/test_patterns_3.tar": "absolute",
    "libarchive/test_patterns_4.tar": "absolute",
    "libarchive/test_read_format_gtar_sparse_1_17_posix10_modified.tar": "bad number",
    "libarchive/test_read_format_gtar_sparse_skip_entry.tar.Z": "does not match its size",
    "libarchive/test_read_format_tar_empty_filename.tar": "its name is empty",
    "libarchive/test_read_format_tar_invalid_pax_size.tar": "bad length of a pax record",
    "libpython3.11-testsuite/recursion.tar": "cut short",
    "libpython3.11-testsuite/testtar.tar": "user id 4294967295",
    "node-tar/bad-cksum.tar": "bad checksum",
    "node-tar/links-invalid.tar": "its name is empty",
    "node-tar/links-strip.tar": END,
    "node-tar/long-pax.tar": END,
    "node-tar/path-missing.tar": "its name is empty",
}
UNKNOWN = re.compile(r"\.(lzo|grz|lrz|rpm|rar)$")  # no tar, or wants a program of its own

# Read as bsdtar does not, which is right.
OTHERWISE = {
    "libarchive/test_compat_star_acl_posix1e.tar": "bsdtar lets an ACL change the mode",
    "golang-1.19/pax-global-records.tar": "bsdtar ignores global headers",
    "node-tar/global-header.tar": "bsdtar ignores global headers",
    "libarchive/test_gcpio_compat_ref.crc": "bsdtar loses the content of links when it converts",
    "libarchive/test_gcpio_compat_ref.newc": "the same",
    "libarchive/test_gcpio_compat_ref_nosym.crc": "the same",
    "libarchive/test_gcpio_compat_ref_nosym.newc": "the same",
}


def unlike(ours: dict[bytes, tuple[object, ...]], theirs: dict[bytes, tuple[object, ...]]) -> list:
    """What differs in names, types, owners, modes, targets, devices, whole seconds or content."""

    def facts(held: dict[bytes, tuple[object, ...]], name: bytes) -> tuple[object, ...]:
        row = held[name]
        if row[0] == "link":  # the name that comes first in the archive is not the first sorted
            row = held[os.fsencode(str(row[1]))]
        kind = b"0" if row[0] in (b"7", b"S", b"\0") else row[0]
        mode = int(str(row[1]), 8) & 0o7777  # some archivers write the type, too
        return (kind, mode, *row[2:6], int(float(str(row[6]))), row[7])

    implied = {b"."} | {name for name in ours if any(t.startswith(name + b"/") for t in theirs)}
    names = (ours.keys() - implied) ^ (theirs.keys() - implied)
    return sorted(names) + [
        (name, facts(ours, name), facts(theirs, name))
        for name in ours.keys() & theirs.keys()
        if facts(ours, name) != facts(theirs, name)
    ]


def there_and_back(archive: Path, tree: Path) -> bytes:
    """The archive staged, collected, and that once more: must be the same."""
    stage(archive, tree)
    assert not check(tree)
    first, second = io.BytesIO(), io.BytesIO()
    collect(tree, first)
    shutil.rmtree(tree)
    stage(io.BytesIO(first.getvalue()), tree)
    collect(tree, second)
    assert first.getvalue() == second.getvalue()
    return first.getvalue()


def test_all_of_them(archives: dict[str, Path], tmp_path: Path) -> None:
    assert len(archives) > 150 and set(archives) >= {*REFUSED, *OTHERWISE}
    compared = 0
    for name, path in archives.items():
        tree = tmp_path / "tree"
        try:
            out = there_and_back(path, tree)
        except GuestctlError as error:
            assert "\n" not in str(error) and str(path) in str(error), name
            reason = "neither tar, cpio nor deb" if UNKNOWN.search(name) else REFUSED.get(name)
            assert reason and reason in str(error), f"{name}: {error}"
        else:
            assert name not in REFUSED, name
            theirs = by_bsdtar(path)
            if theirs is not None and name not in OTHERWISE:
                assert not unlike(members(out), theirs), name
                compared += 1
        finally:
            assert os.listdir(tmp_path) in ([], ["tree"])
            shutil.rmtree(tree, ignore_errors=True)
    assert compared > 80


def test_the_one_of_python_without_its_impossible_owner(
    archives: dict[str, Path], tmp_path: Path
) -> None:
    """testtar.tar has every dialect and odd name, and one id that no file system holds."""
    data = bytearray(archives["libpython3.11-testsuite/testtar.tar"].read_bytes())
    for start in range(0, len(data), 512):
        block = data[start : start + 512]
        if block[257:262] == b"ustar" and block[108] & 0x80:
            block[108:124] = b"0001750\0" * 2
            block[148:156] = b"        "
            block[148:156] = b"%06o\0 " % sum(block)
            data[start : start + 512] = block
    (tmp_path / "testtar.tar").write_bytes(data)
    out = there_and_back(tmp_path / "testtar.tar", tmp_path / "tree")
    theirs = members(bytes(data))
    assert len(theirs) > 30
    assert not unlike(members(out), theirs)
