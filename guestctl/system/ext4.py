"""ext4 without root: mke2fs makes an empty file system, debugfs fills it by a script.

Nothing is mounted, and no file of ours has the owner or the type that the image gets. debugfs reads
its script line by line: a name with a newline cannot be said in it. Times, the identifier and the
seed of hashes are fixed, so that the same tree gives the same bytes.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from guestctl.entry import Entry
from guestctl.errors import ArchiveError, HostLacks
from guestctl.system.rootfs import RootFs

__all__ = ["write_ext4"]

_ID = "7f1e2d3c-4b5a-4697-8899-aabbccddeeff"
_BLOCK = 4096
_DEADLINE = 1800
_MOST_SECONDS = (1 << 34) - 1 - (1 << 31)  # 34 bits, of which the lowest value is -2^31
_LEAST_SECONDS = -(1 << 31)
# No journal: an image is written once, and mounted read-only by default.
_FEATURES = (
    "extent,filetype,sparse_super,large_file,huge_file,dir_index,ext_attr,64bit,flex_bg,"
    "metadata_csum,extra_isize,dir_nlink"
)
_TYPES = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}
_SPARE = 1.15  # for what cannot be foreseen: blocks of extents, and room to work in


def write_ext4(rootfs: RootFs, out: Path, *, epoch: int, size: int | None = None) -> None:
    """Writes `out`, of `size` bytes, or as large as is needed and a little more.

    :raise ArchiveError: a name has a newline, or `size` is too small.
    :raise HostLacks: e2fsprogs are not there.
    """
    room, inodes = _needs(rootfs)
    blocks = (room if size is None else size) // _BLOCK
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C",
        "E2FSPROGS_FAKE_TIME": str(epoch),
        "MKE2FS_CONFIG": "/dev/null",
    }
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", f"none,{_FEATURES}"]
    make += ["-b", str(_BLOCK), "-I", "256", "-N", str(inodes), "-m", "0", "-U", _ID]
    make += ["-E", f"hash_seed={_ID},root_owner=0:0,lazy_itable_init=0", str(out), str(blocks)]
    _run(make, environment, out)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".ext4.") as scratch:
        script = Path(scratch, "script")
        with open(script, "wb") as file:
            for line in _script(rootfs, Path(scratch), epoch):
                file.write(line + b"\n")
        said = _run(["debugfs", "-w", "-f", str(script), str(out)], environment, out)
        _check(said)
    _run(["e2fsck", "-f", "-n", str(out)], environment, out)


def _needs(rootfs: RootFs) -> tuple[int, int]:
    """Bytes and inodes that the tree takes at most."""
    size, inodes = 2 << 20, 64
    for entry, _content in rootfs.entries():
        inodes += entry.link is None
        data = sum(length for _, length in entry.sparse) if entry.sparse else entry.size
        size += -(-data // _BLOCK) * _BLOCK + 64 + len(entry.path.rpartition(b"/")[2])
        size += 2 * _BLOCK if stat.S_ISDIR(entry.mode) else 0
        size += _BLOCK if entry.xattrs or len(entry.target) >= 60 else 0
    return -(-int((size + inodes * 256) * _SPARE) // _BLOCK) * _BLOCK, inodes


def _script(rootfs: RootFs, scratch: Path, epoch: int) -> Iterator[bytes]:
    """debugfs' commands, one a line. Folders are entered, so that names stay short."""
    links = Counter(entry.link or entry.path for entry, _ in rootfs.entries())
    blocks = _blocks_ahead(rootfs)
    number = 0
    yield b"rmdir lost+found"
    yield from [b"expand_dir /"] * blocks[b""]
    for entry, content in rootfs.packable():
        if b"\n" in entry.path + entry.target:
            raise ArchiveError(
                f"{entry.shown!r}: a name with a newline cannot be packed as ext4 here",
                hint="squashfs, cpio, tar and oci take it",
            )
        path = b'"' + b"/" + entry.path.replace(b'"', b'""') + b'"'
        folder, _, name = entry.path.rpartition(b"/")
        if entry.link is not None:
            yield b'ln "/%s" %s' % (entry.link.replace(b'"', b'""'), path)
            continue
        if entry.path:
            yield b'cd "/%s"' % folder.replace(b'"', b'""')
            short = b'"' + name.replace(b'"', b'""') + b'"'
            yield _creation(entry, short, content)
            yield from [b"expand_dir " + path] * blocks[entry.path]
        yield from _inode(rootfs, entry, path, links[entry.path], epoch)
        for key, value in sorted(entry.xattrs.items()):
            number += 1
            spool = scratch / f"{number}"
            spool.write_bytes(value)
            yield b"ea_set -f %s %s %s" % (os.fsencode(spool), path, key)


def _blocks_ahead(rootfs: RootFs) -> Counter[bytes]:
    """How many blocks each folder needs beside its first, for folders with further names of files:
    debugfs' `ln` does not make room itself, as its other commands do.
    """
    sizes: Counter[bytes] = Counter()
    linked = set()
    for entry, _content in rootfs.entries():
        folder, _, name = entry.path.rpartition(b"/")
        sizes[folder] += 8 + -(-len(name) // 4) * 4
        if entry.link is not None:
            linked.add(folder)
    # What a block holds at least: it ends in a checksum, and the longest name may not fit.
    least = _BLOCK - 12 - (8 + 256)
    return Counter({folder: sizes[folder] // least for folder in linked})


def _creation(entry: Entry, name: bytes, content: int) -> bytes:
    kind = stat.S_IFMT(entry.mode)
    if kind == stat.S_IFDIR:
        return b"mkdir " + name
    if kind == stat.S_IFLNK:
        return b'symlink %s "%s"' % (name, entry.target.replace(b'"', b'""'))
    if kind == stat.S_IFREG:
        path = os.fsencode(os.readlink(f"/proc/self/fd/{content}")).replace(b'"', b'""')
        return b'write "%s" %s' % (path, name)
    # debugfs takes no number above 65535 here: _inode says which device it is.
    device = b" 0 0" if kind != stat.S_IFIFO else b""
    return b"mknod %s %s%s" % (name, _TYPES[kind].encode(), device)


def _encoded(major: int, minor: int) -> int:
    """A device's numbers as the second word of its inode; the kernel's new_encode_dev."""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _inode(rootfs: RootFs, entry: Entry, path: bytes, count: int, epoch: int) -> Iterator[bytes]:
    """The fields that the creation left to the host: mode, owner, times, links."""
    seconds = rootfs.clamped(entry, _LEAST_SECONDS, _MOST_SECONDS)
    extra = (((seconds - _signed(seconds)) >> 32) & 3) | (entry.mtime % 10**9) << 2
    fields = {
        "mode": f"0{entry.mode:o}",
        "uid": str(entry.uid),
        "gid": str(entry.gid),
        "mtime": f"@{seconds & 0xFFFFFFFF}",
        "mtime_extra": str(extra),
        "ctime": f"@{epoch}",
        "atime": f"@{epoch}",
        "crtime": f"@{epoch}",
    }
    if not stat.S_ISDIR(entry.mode) and count > 1:
        fields["links_count"] = str(count)
    if stat.S_IFMT(entry.mode) in (stat.S_IFCHR, stat.S_IFBLK):
        fields["block[0]"] = "0"
        fields["block[1]"] = str(_encoded(*entry.rdev))
    for key, value in fields.items():
        yield b"sif %s %s %s" % (path, key.encode(), value.encode())


def _signed(seconds: int) -> int:
    """The low 32 bits, as the signed number that the inode's main field is."""
    low = seconds & 0xFFFFFFFF
    return low - (1 << 32) if low & 0x80000000 else low


def _check(said: str) -> None:
    """debugfs ends with 0 whatever happened: every line that is no echo of ours is an error."""
    for line in said.splitlines():
        if line.strip() and not line.startswith(("debugfs: ", "debugfs 1", "Allocated inode:")):
            raise ArchiveError(f"debugfs: {line.strip()}")


def _run(command: list[str], environment: dict[str, str], out: Path) -> str:
    """What a tool says on both streams; raises ArchiveError when it fails."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_DEADLINE,
            check=False,
        )
    except FileNotFoundError:
        raise HostLacks(
            f"{command[0]} is not installed", hint="apt-get install e2fsprogs"
        ) from None
    except subprocess.TimeoutExpired:
        raise ArchiveError(f"{command[0]} took more than {_DEADLINE} s") from None
    said = done.stdout.decode(errors="backslashreplace")
    if done.returncode:
        last = (said.strip().splitlines() or ["no word of why"])[-1]
        raise ArchiveError(f"{out.name}: {command[0]}: {last}")
    return said
