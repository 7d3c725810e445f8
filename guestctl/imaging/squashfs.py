"""Writes a squashfs from a tar stream, and mends what squashfs-tools 4.5.1 does to its root folder.

`sqfstar` gives the root folder to whoever runs it, and `-root-uid` does not change that. So the
owner is set afterwards, and his number leaves the table of ids: the bytes must not depend on him.
Format: the kernel's fs/squashfs/squashfs_fs.h; little-endian, metadata stored uncompressed here.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import BinaryIO

from guestctl.errors import ImageError
from guestctl.imaging.filetree import FileTree
from guestctl.imaging.workshop import Step

__all__ = ["own_root", "unpack_squashfs", "write_squashfs"]

VERSION = 1  # of unpacked folders

_BLOCK = 8192  # of metadata; each has a header of two bytes
_STORED = 0x8000
_PAD = 4096


def write_squashfs(step: Step, tree: FileTree, output: Path) -> None:
    """Writes `tree`; the same tree gives the same bytes. Nothing in it is compressed."""
    # The kernel refuses a compressor that it lacks even where nothing is compressed: it has lz4.
    command: list[str | Path] = ["sqfstar", "-comp", "lz4", "-noI", "-noD", "-noF", "-noX"]
    command += ["-no-xattrs", "-mkfs-time", "0", "-all-time", "0", "-root-mode", "0755"]
    command += ["-no-progress", "-quiet", output]
    step.run(command, stdin=tree.write, deadline=900)
    ids = {number for node in tree.nodes.values() for number in (node.uid, node.gid)}
    with output.open("r+b") as file:
        own_root(file, ids | {0})


def unpack_squashfs(step: Step, image: Path) -> None:
    """Unpacks `image` to `root`, all of it readable by its owner."""
    command = ["unsquashfs", "-no-xattrs", "-no-progress", "-quiet", "-processors", "2"]
    step.run([*command, "-dest", step.out / "root", image], deadline=900)
    for base, folders, files in os.walk(step.out / "root"):
        for name in (*folders, *files):
            path = Path(base, name)
            mode = path.lstat().st_mode
            wanted = mode | (0o700 if stat.S_ISDIR(mode) else 0o400)
            if wanted != mode and not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(wanted))


def own_root(file: BinaryIO, ids: set[int], mtime: int = 0) -> None:
    """Gives the root folder to root and the time `mtime`, and takes out of the table of ids those
    not in `ids`.
    """
    head = file.read(96)
    magic, count = struct.unpack_from("<I", head)[0], struct.unpack_from("<H", head, 26)[0]
    root, used, table, _xattrs, inodes = struct.unpack_from("<5Q", head, 32)
    if magic != 0x73717368 or count * 4 > _BLOCK or used != table + 8:
        raise ImageError("sqfstar wrote what is not known here: a newer squashfs?")
    start = _u64(file, table)
    file.seek(start + 2)
    known = list(struct.unpack(f"<{count}I", file.read(4 * count)))
    for field in (4, 6):  # of the inode: where in the table its user and its group are
        _write_stored(file, inodes + (root >> 16), (root & 0xFFFF) + field, known.index(0))
    for half in range(2):
        offset = (root & 0xFFFF) + 8 + 2 * half
        _write_stored(file, inodes + (root >> 16), offset, mtime >> 16 * half & 0xFFFF)
    while known[-1] not in ids:
        known.pop()
    if not ids.issuperset(known):
        raise ImageError("sqfstar ordered its table of ids otherwise than is known here")
    file.seek(start)
    file.write(struct.pack(f"<H{len(known)}I", _STORED | 4 * len(known), *known))
    table = file.tell()
    file.write(struct.pack("<Q", start))
    used = file.tell()
    file.truncate(used)
    file.truncate(-(-used // _PAD) * _PAD)
    file.seek(26)
    file.write(struct.pack("<H", len(known)))
    file.seek(40)
    file.write(struct.pack("<QQ", used, table))


def _write_stored(file: BinaryIO, block: int, offset: int, number: int) -> None:
    """Writes two bytes into metadata that begin `offset` bytes after the start of `block`."""
    for shift in range(2):
        skipped, inside = divmod(offset + shift, _BLOCK)
        file.seek(block + skipped * (_BLOCK + 2))
        if not struct.unpack("<H", file.read(2))[0] & _STORED:
            raise ImageError("sqfstar compressed metadata that was to be stored")
        file.seek(inside, 1)
        file.write(bytes([number >> 8 * shift & 0xFF]))


def _u64(file: BinaryIO, offset: int) -> int:
    file.seek(offset)
    number: int = struct.unpack("<Q", file.read(8))[0]
    return number
