"""Packed systems, each read back by another tool: e2fsprogs, squashfs-tools, cpio, tar."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from guestctl.errors import ArchiveError, UsageError
from guestctl.system.pack import FORMATS, PackOptions, pack

TEXT = b"content\n"
BIG = os.urandom(300_000)
LONG_TARGET = "t/" * 100 + "end"

# name: (type, mode, uid, gid, mtime, what)
ENTRIES: dict[str, tuple[bytes, int, int, int, int, object]] = {
    ".": (tarfile.DIRTYPE, 0o755, 0, 0, 1_000_000_000, None),
    "bin": (tarfile.DIRTYPE, 0o755, 0, 0, 1_000_000_001, None),
    "bin/su": (tarfile.REGTYPE, 0o4755, 0, 0, 1_000_000_002, TEXT),
    "bin/again": (tarfile.LNKTYPE, 0o4755, 0, 0, 1_000_000_002, "bin/su"),
    "big": (tarfile.REGTYPE, 0o640, 1000, 100_000, 1_000_000_003, BIG),
    "empty": (tarfile.REGTYPE, 0o644, 0, 0, 0, b""),
    "home dir": (tarfile.DIRTYPE, 0o2775, 1000, 1000, 1_000_000_004, None),
    'home dir/a "quoted" name': (tarfile.REGTYPE, 0o600, 70_000, 2, 1_000_000_005, b"q"),
    "link": (tarfile.SYMTYPE, 0o777, 0, 0, 1_000_000_006, "bin/su"),
    "long": (tarfile.SYMTYPE, 0o777, 3, 4, 1_000_000_007, LONG_TARGET),
    "tmp": (tarfile.DIRTYPE, 0o1777, 0, 0, 1_000_000_008, None),
    "dev": (tarfile.DIRTYPE, 0o755, 0, 0, 1_000_000_009, None),
    "dev/console": (tarfile.CHRTYPE, 0o620, 0, 5, 1_000_000_010, (5, 1)),
    "dev/disk": (tarfile.BLKTYPE, 0o660, 0, 6, 1_000_000_011, (259, 70_000)),
    "dev/pipe": (tarfile.FIFOTYPE, 0o600, 0, 0, 1_000_000_012, None),
    "caf\udce9": (tarfile.REGTYPE, 0o644, 0, 0, 1_000_000_013, b"latin"),
}
# bsdtar's letters for types, as all the listings below are compared.
LETTERS = {
    tarfile.DIRTYPE: "d", tarfile.REGTYPE: "-", tarfile.SYMTYPE: "l", tarfile.CHRTYPE: "c",
    tarfile.BLKTYPE: "b", tarfile.FIFOTYPE: "p", tarfile.LNKTYPE: "-",
}  # fmt: skip


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("system") / "rootfs.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for name, (kind, mode, uid, gid, mtime, what) in ENTRIES.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.uid, entry.gid = kind, mode, uid, gid
            entry.mtime = mtime
            data = what if isinstance(what, bytes) else b""
            entry.size = len(data)
            if isinstance(what, str):
                entry.linkname = what
            elif isinstance(what, tuple):
                entry.devmajor, entry.devminor = what
            tar.addfile(entry, io.BytesIO(data))
    return path


def run(*command: str | Path, check: bool = True) -> bytes:
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "TZ": "UTC"}
    return subprocess.run(command, check=check, capture_output=True, env=environment).stdout


def run_on(archive: Path, *command: str) -> bytes:
    with open(archive, "rb") as file:
        return subprocess.run(command, stdin=file, check=True, capture_output=True).stdout


@pytest.mark.parametrize("kind", sorted(set(FORMATS) - {"oci"}))
def test_the_same_archive_gives_the_same_bytes(rootfs: Path, tmp_path: Path, kind: str) -> None:
    for number in range(2):
        assert pack(rootfs, tmp_path / f"{number}.tar", kind) == ()
    first, second = (tmp_path / f"{number}.tar" for number in range(2))
    assert first.read_bytes() == second.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


# --- ext4 -----------------------------------------------------------------------------------------


def stat_of(image: Path, name: str) -> dict[str, str]:
    """What debugfs says of a path."""
    quoted = name.replace('"', '""')
    text = run("debugfs", "-R", f'stat "/{quoted}"', image).decode()
    found = dict(re.findall(r"(Type|Mode|User|Group|Size|Links|Fast link dest): +(\S+)", text))
    times = re.search(r"mtime: 0x([0-9a-f]+):([0-9a-f]+)", text)
    assert times, text
    low, extra = (int(each, 16) for each in times.groups())
    found["mtime"] = str((low - (1 << 32 if low >> 31 else 0)) + ((extra & 3) << 32))
    device = re.search(r"Device major/minor number: (\d+):(\d+)", text)
    found["device"] = ":".join(str(int(each)) for each in device.groups()) if device else ""
    return found


EXT4_TYPES = {
    tarfile.DIRTYPE: "directory", tarfile.REGTYPE: "regular", tarfile.LNKTYPE: "regular",
    tarfile.SYMTYPE: "symlink", tarfile.CHRTYPE: "character", tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "FIFO",
}  # fmt: skip


@pytest.fixture(scope="module")
def ext4(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ext4") / "rootfs.ext4"
    assert pack(rootfs, out, "ext4") == ()
    return out


@pytest.mark.parametrize("name", [name for name in ENTRIES if name.isascii()])
def test_ext4_holds_every_entry_as_it_was(ext4: Path, name: str) -> None:
    kind, mode, uid, gid, mtime, what = ENTRIES[name]
    found = stat_of(ext4, "" if name == "." else name)
    assert found["Type"] == EXT4_TYPES[kind]
    assert int(found["Mode"], 8) == mode
    assert (found["User"], found["Group"]) == (str(uid), str(gid))
    assert int(found["mtime"]) == mtime
    if isinstance(what, tuple):
        assert found["device"] == f"{what[0]}:{what[1]}"
    if name in ("bin/su", "bin/again"):
        assert found["Links"] == "2"


def test_ext4_holds_contents_and_targets(ext4: Path, tmp_path: Path) -> None:
    for name, data in (("big", BIG), ("bin/again", TEXT), ('home dir/a "quoted" name', b"q")):
        quoted = name.replace('"', '""')
        assert run("debugfs", "-R", f'cat "/{quoted}"', ext4) == data
    assert run("debugfs", "-R", "cat /long", ext4) == LONG_TARGET.encode()
    listing = run("debugfs", "-R", "ls -p /", ext4)
    assert b"/caf\xe9/" in listing
    assert b"lost+found" not in listing


def test_ext4_is_clean(ext4: Path) -> None:
    run("e2fsck", "-f", "-n", ext4)


def test_ext4_cannot_take_a_newline(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a\nb"))
    with pytest.raises(ArchiveError, match="newline"):
        pack(tmp_path / "a.tar", tmp_path / "out", "ext4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_ext4_that_is_too_small_says_so(rootfs: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError):
        pack(rootfs, tmp_path / "out", "ext4", PackOptions(size=200_000))
    assert not list(tmp_path.iterdir())


# --- squashfs and cpio: listed by another tool ----------------------------------------------------


def expected(unit: int = 1) -> set[str]:
    """All entries as lines, with times in units of so many seconds."""
    return {
        " ".join((LETTERS[kind], f"{mode:o}", f"{uid}/{gid}", str(mtime // unit), name))
        for name, (kind, mode, uid, gid, mtime, _what) in ENTRIES.items()
    }


def permissions(text: str) -> tuple[str, str]:
    """`drwxr-sr-t` as the type's letter and octal digits."""
    bits = 0
    for number, letter in enumerate(text[1:]):
        bits |= (letter not in "-ST") << (8 - number)
        bits |= (letter in "sStT") << {2: 11, 5: 10, 8: 9}.get(number, 12)
    return text[0], f"{bits & 0o7777:o}"


def test_squashfs_is_what_unsquashfs_lists(rootfs: Path, tmp_path: Path) -> None:
    out = tmp_path / "rootfs.squashfs"
    assert pack(rootfs, out, "squashfs") == ()
    found = set()
    for line in (
        run("unsquashfs", "-UTC", "-lln", out).decode(errors="surrogateescape").splitlines()
    ):
        match = re.match(
            r"(\S{10}) (\d+)/(\d+) +(?:\d+|\d+, *\d+) (\d+-\d+-\d+ \d+:\d+) squashfs-root(.*)",
            line,
        )
        if match:
            mode, uid, gid, when, rest = match.groups()
            seconds = run("date", "-u", "-d", f"{when} UTC", "+%s").decode().strip()
            name = rest.split(" -> ")[0].lstrip("/") or "."
            minutes = str(int(seconds) // 60)
            found.add(" ".join((*permissions(mode), f"{uid}/{gid}", minutes, name)))
    wanted = {line for line in expected(60) if not line.endswith(" .")}
    assert wanted <= found
    (top,) = found - wanted
    assert top == f"d 755 0/0 {1_700_000_000 // 60} ."
    run("unsquashfs", "-no-xattrs", "-quiet", "-d", tmp_path / "x", out, "big", "bin/again")
    assert (tmp_path / "x" / "big").read_bytes() == BIG
    assert (tmp_path / "x" / "bin" / "again").read_bytes() == TEXT


def by_bsdtar(out: Path) -> dict[str, tarfile.TarInfo]:
    """What another reader of archives finds, as a third one reads it."""
    copy = run("bsdtar", "-cf", "-", "--format=pax", f"@{out}")
    with tarfile.open(fileobj=io.BytesIO(copy)) as tar:
        return {e.name.removeprefix("./"): e for e in tar}


def lines_of(found: dict[str, tarfile.TarInfo]) -> set[str]:
    return {
        " ".join((LETTERS[e.type], f"{e.mode:o}", f"{e.uid}/{e.gid}", f"{e.mtime:.0f}", name))
        for name, e in found.items()
    }


def test_tar_is_what_bsdtar_lists(rootfs: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed.tar"
    assert pack(rootfs, out, "tar") == ()
    found = by_bsdtar(out)
    assert lines_of(found) == expected()
    assert (found["dev/disk"].devmajor, found["dev/disk"].devminor) == (259, 70_000)
    assert found["long"].linkname == LONG_TARGET
    assert {found["bin/su"].type, found["bin/again"].type} == {tarfile.REGTYPE, tarfile.LNKTYPE}
    assert run("tar", "-xOf", out, "--wildcards", "*big") == BIG


def test_cpio_is_what_bsdtar_and_cpio_list(rootfs: Path, tmp_path: Path) -> None:
    out = tmp_path / "rootfs.cpio"
    assert pack(rootfs, out, "cpio") == ()
    found = by_bsdtar(out)
    assert lines_of(found) == expected()
    assert (found["dev/disk"].devmajor, found["dev/disk"].devminor) == (259, 70_000)
    listing = run_on(out, "cpio", "--quiet", "-it")
    assert len(listing.splitlines()) == len(ENTRIES)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    run_on(out, "cpio", "--quiet", "-idm", "-D", str(unpacked), "big", "bin", "bin/*")
    assert (unpacked / "bin" / "su").samefile(unpacked / "bin" / "again")
    assert (unpacked / "bin" / "again").read_bytes() == TEXT
    assert (unpacked / "big").read_bytes() == BIG


@pytest.mark.parametrize("kind", ["squashfs", "cpio"])
def test_times_that_do_not_fit_are_named(tmp_path: Path, kind: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        top = tarfile.TarInfo(".")
        top.type = tarfile.DIRTYPE
        tar.addfile(top)
        entry = tarfile.TarInfo("old")
        entry.mtime = -5
        tar.addfile(entry)
    assert pack(tmp_path / "a.tar", tmp_path / "out", kind) == (
        "old: its time -5 does not fit, and becomes 0",
    )


# --- oci ------------------------------------------------------------------------------------------


def test_oci_is_whole_by_its_digests(rootfs: Path, tmp_path: Path) -> None:
    out = tmp_path / "image"
    assert pack(rootfs, out, "oci") == ()

    def blob(descriptor: dict[str, object]) -> bytes:
        kind, _, digest = str(descriptor["digest"]).partition(":")
        data = (out / "blobs" / kind / digest).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        assert len(data) == descriptor["size"]
        return data

    assert json.loads((out / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((out / "index.json").read_text())["manifests"]
    manifest = json.loads(blob(entry))
    config = json.loads(blob(manifest["config"]))
    assert (config["architecture"], config["variant"]) == ("arm", "v5")
    (layer,) = manifest["layers"]
    with tarfile.open(fileobj=io.BytesIO(blob(layer)), mode="r:gz") as tar:
        assert {os.path.normpath(entry.name) for entry in tar} == set(ENTRIES)
    plain = subprocess.run(
        ["gzip", "-dc"], input=blob(layer), capture_output=True, check=True
    ).stdout
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(plain).hexdigest()}"]


def test_skopeo_takes_the_oci_layout(rootfs: Path, tmp_path: Path) -> None:
    pack(rootfs, tmp_path / "image", "oci")
    facts = json.loads(run("skopeo", "inspect", f"oci:{tmp_path}/image:latest"))
    assert (facts["Architecture"], facts["Os"]) == ("arm", "linux")


def test_an_unknown_format(rootfs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown format 'vmdk'"):
        pack(rootfs, tmp_path / "out", "vmdk")


def test_ext4_has_room_for_many_further_names(tmp_path: Path) -> None:
    """debugfs makes no room for a hard link: folders of them, such as terminfo's, get it ahead."""
    names = [f"d/{number:03}-{'n' * 60}" for number in range(300)]
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        folder = tarfile.TarInfo("d")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo(names[0]))
        for name in names[1:]:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.LNKTYPE, names[0]
            tar.addfile(entry)
    out = tmp_path / "links.ext4"
    assert pack(tmp_path / "links.tar", out, "ext4") == ()
    listed = subprocess.run(
        ["debugfs", "-R", "ls -p /d", str(out)],
        capture_output=True, text=True, check=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip
    assert sum("-nnn" in line for line in listed.stdout.splitlines()) == len(names)
