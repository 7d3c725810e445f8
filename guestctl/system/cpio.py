"""cpio in the format newc, which the kernel takes as an initramfs.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from guestctl.entry import Entry
from guestctl.errors import ArchiveError
from guestctl.system.rootfs import RootFs

__all__ = ["write_cpio"]

_MOST = 0xFFFFFFFF
_END = b"TRAILER!!!"
_CHUNK = 1 << 20


def write_cpio(rootfs: RootFs, out: Path) -> None:
    """Writes `out`. Times are whole seconds from 1970 to 2106, there are no attributes.

    :raise ArchiveError: a file is larger than 4 GiB.
    """
    links = Counter(entry.link or entry.path for entry, _ in rootfs.entries())
    inodes: dict[bytes, int] = {}
    with open(out, "wb") as file:
        for entry, content in rootfs.packable():
            owner = entry.link or entry.path
            inode = inodes.setdefault(owner, len(inodes) + 1)
            _warn_of_losses(rootfs, entry)
            count = 2 if stat.S_ISDIR(entry.mode) else links[owner]
            size = entry.size if content >= 0 else len(entry.target)
            if size > _MOST:
                raise ArchiveError(f"{entry.shown}: {size} bytes are too many for cpio")
            _header(file, entry, inode, count, size, rootfs.clamped(entry, 0, _MOST))
            if content >= 0:
                _copy(content, file, size, entry.shown)
            else:
                file.write(entry.target)
            _pad(file)
        _header(file, Entry(_END, 0), 0, 1, 0, 0)
        _pad(file)


def _warn_of_losses(rootfs: RootFs, entry: Entry) -> None:
    if entry.xattrs and entry.link is None:
        names = ", ".join(sorted(os.fsdecode(name) for name in entry.xattrs))
        rootfs.warn(f"{entry.shown}: cpio has no attributes: {names} left out")


def _header(file: BinaryIO, entry: Entry, inode: int, count: int, size: int, mtime: int) -> None:
    """The thirteen numbers of a member, and its name."""
    name = (entry.path or b".") + b"\0"
    numbers = (
        inode, entry.mode, entry.uid, entry.gid, count, mtime, size, 0, 0, *entry.rdev,
        len(name), 0,
    )  # fmt: skip
    file.write(b"070701" + b"".join(b"%08X" % number for number in numbers) + name)
    _pad(file)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % 4))


def _copy(source: int, file: BinaryIO, size: int, shown: str) -> None:
    left = size
    while left:
        block = os.read(source, min(left, _CHUNK))
        if not block:
            raise ArchiveError(f"{shown}: shrank while it was read")
        file.write(block)
        left -= len(block)
