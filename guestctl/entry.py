"""One member of an archive or of a tree, whatever the format. Pure.

Names and link targets are bytes. Paths are relative, without `.`, `..` or empty components;
the empty path is the root.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from guestctl.vmeta import RESERVED

__all__ = ["NAME_MAX", "TARGET_MAX", "Entry", "Limits", "clean_path", "type_name"]

NAME_MAX = 255
TARGET_MAX = 4095

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_ODD = frozenset((b"", b".", b".."))
_BAD = _ODD | RESERVED


@dataclass(slots=True)
class Entry:
    """`mode` is the full st_mode; `mtime` is in ns; `size` that of a file's whole content.

    `link` is the path of another member that this one is a hard link to, else None.
    `sparse` lists (offset, length) of the data of a file with holes, else None.
    """

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    target: bytes = b""
    link: bytes | None = None
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[tuple[int, int]] | None = None

    @property
    def shown(self) -> str:
        return os.fsdecode(self.path) or "."


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may ask for before it counts as a bomb.

    `bytes`: the sizes of all files, holes included. `depth`: components of a path. `ratio`: times
    that it may grow when unpacked, counted from 256 MiB on.
    """

    entries: int = 10_000_000
    bytes: int = 1 << 40
    depth: int = 256
    ratio: float = 1000.0


def type_name(mode: int) -> str:
    return _TYPES.get(stat.S_IFMT(mode), "unknown")


def clean_path(name: bytes) -> bytes:
    """Returns `name` without `.` and doubled or trailing slashes.

    :raise ValueError: it says what is wrong: empty, absolute, `..`, NUL, too long, reserved.
    """
    if not name:
        raise ValueError("its name is empty")
    if name.startswith(b"./") and len(name) > 2:
        name = name[2:]
    parts = name.split(b"/")
    if not _BAD.isdisjoint(parts):
        if name.startswith(b"/"):
            raise ValueError("its name is absolute")
        parts = [part for part in parts if part not in (b"", b".")]
        if b".." in parts:
            raise ValueError("its name has a '..'")
        for part in parts:
            if part in RESERVED:
                raise ValueError(f"the name {part.decode()} is reserved for metadata")
        name = b"/".join(parts)
    if b"\0" in name:
        raise ValueError("its name has a NUL byte")
    if len(name) > NAME_MAX and max(map(len, parts)) > NAME_MAX:
        raise ValueError(f"its name has a component of more than {NAME_MAX} bytes")
    return name
