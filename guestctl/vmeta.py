"""The metadata that QEMU's 9p `local` backend keeps for each entry, as text and as xattrs. Pure.

Source of the format: hw/9pfs/9p-local.c, local_set_mapped_file_attr_at and local_mapped_file_attr
(mapped-file), local_set_xattrat and local_lstat (mapped-xattr). See docs/virtfs-format.md.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from functools import lru_cache

__all__ = [
    "ACL_PREFIX",
    "ASIDE_PREFIX",
    "ID_MAX",
    "MAPPED_FILE",
    "MAPPED_XATTR",
    "META_DIR",
    "META_MAX",
    "MODELS",
    "MODE_XATTR",
    "RESERVED",
    "ROOT_FILE",
    "SEAL",
    "STATE_NAME",
    "STATE_XATTR",
    "VIRTFS_PREFIX",
    "Meta",
    "decode_rdev",
    "decode_text",
    "decode_xattrs",
    "encode_rdev",
    "encode_text",
    "encode_xattrs",
    "has_rdev",
]

MAPPED_FILE = "mapped-file"
MAPPED_XATTR = "mapped-xattr"
MODELS = (MAPPED_FILE, MAPPED_XATTR)

META_DIR = b".virtfs_metadata"
ROOT_FILE = b".virtfs_metadata_root"
RESERVED = frozenset((META_DIR, ROOT_FILE))

# The guest can never name an entry like its metadata folder, so the slot of that name in the
# root's metadata folder is ours: the guest neither sees it nor can it collide.
STATE_NAME = META_DIR
VIRTFS_PREFIX = b"user.virtfs."  # mapped-xattr hides it from the guest; mapped-file does not
MODE_XATTR = b"user.virtfs.mode"
STATE_XATTR = b"user.virtfs.guestctl.state"
# What QEMU cannot store is kept under this prefix: on the metadata file (mapped-file), where the
# guest cannot look, and on the entry (mapped-xattr). Both follow renames, links and unlinks.
ASIDE_PREFIX = b"user.virtfs.guestctl.aside."
# mtime and size of a file that has a capability: when they change, so did the content, and the
# capability is void, as it would be on a real file system.
SEAL = b"user.virtfs.guestctl.seal"
ACL_PREFIX = b"user.virtfs.system."

ID_MAX = 0xFFFFFFFE  # -1 means "unset" to QEMU
META_MAX = 4096  # more than this is not metadata
_CHUNK = 99  # fgets into char[100]
_WITH_RDEV = frozenset((stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK))
_TYPES = frozenset(
    (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    )
)


@dataclass(frozen=True, slots=True)
class Meta:
    """What an entry's metadata says; None where it says nothing. `rdev` is 32 bits, unsigned."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    rdev: int | None = None

    @property
    def complete(self) -> bool:
        if self.uid is None or self.gid is None or self.mode is None:
            return False
        return self.rdev is not None or not has_rdev(self.mode)


def has_rdev(mode: int) -> bool:
    """Whether QEMU writes an rdev for what mknod made (devices, and 0 for fifos and sockets)."""
    return mode & 0o170000 in _WITH_RDEV


def encode_rdev(major: int, minor: int) -> int:
    """Returns the 32-bit Linux encoding; ValueError where the numbers do not fit in 12 and 20."""
    if not (0 <= major <= 0xFFF and 0 <= minor <= 0xFFFFF):
        raise ValueError(f"device number {major}:{minor} does not fit in 12 and 20 bits")
    return (minor & 0xFF) | (major << 8) | ((minor & 0xFFF00) << 12)


def decode_rdev(rdev: int) -> tuple[int, int]:
    rdev &= 0xFFFFFFFF
    return (rdev >> 8) & 0xFFF, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00)


def _check(uid: int, gid: int, mode: int) -> None:
    for what, value in (("user", uid), ("group", gid)):
        if not 0 <= value <= ID_MAX:
            raise ValueError(f"{what} id {value} is not within 0 to {ID_MAX}")
    if stat.S_IFMT(mode) not in _TYPES or mode & ~0o177777:
        raise ValueError(f"mode {mode:o} has no file type that Linux knows")


@lru_cache(maxsize=8192)
def encode_text(uid: int, gid: int, mode: int, rdev: int | None = None) -> bytes:
    """Returns the mapped-file text, byte for byte as QEMU writes it.

    :raise ValueError: an id or a device number that the format cannot hold.
    """
    _check(uid, gid, mode)
    text = b"virtfs.uid=%d\nvirtfs.gid=%d\nvirtfs.mode=%d\n" % (_signed(uid), _signed(gid), mode)
    if rdev is None:
        return text
    if rdev == 0xFFFFFFFF:
        raise ValueError("device number 4095:1048575 means 'unset' in mapped-file")
    return text + b"virtfs.rdev=%d\n" % _signed(rdev)


@lru_cache(maxsize=1024)
def encode_xattrs(
    uid: int, gid: int, mode: int, rdev: int | None = None
) -> tuple[tuple[bytes, bytes], ...]:
    """Returns the mapped-xattr attributes: 4 bytes little-endian each, 8 for rdev."""
    _check(uid, gid, mode)
    pairs = [
        (b"user.virtfs.uid", uid.to_bytes(4, "little")),
        (b"user.virtfs.gid", gid.to_bytes(4, "little")),
        (MODE_XATTR, mode.to_bytes(4, "little")),
    ]
    if rdev is not None:
        pairs.append((b"user.virtfs.rdev", rdev.to_bytes(8, "little")))
    return tuple(pairs)


_CANONICAL = re.compile(
    rb"virtfs\.uid=(-?\d{1,9})\nvirtfs\.gid=(-?\d{1,9})\n"
    rb"virtfs\.mode=(\d{1,9})\n(?:virtfs\.rdev=(-?\d{1,9})\n)?"
)
_KEYS = (
    (b"virtfs.uid", 11, "uid"),
    (b"virtfs.gid", 11, "gid"),
    (b"virtfs.mode", 12, "mode"),
    (b"virtfs.rdev", 12, "rdev"),
)
_ATOI = re.compile(rb"[ \t\n\v\f\r]*([+-]?\d+)")


@lru_cache(maxsize=8192)
def decode_text(text: bytes) -> Meta:
    """Reads mapped-file text exactly as QEMU's parser does, oddities included."""
    match = _CANONICAL.fullmatch(text)
    if match:
        uid, gid, mode, rdev = match.groups()
        return Meta(
            int(uid) & 0xFFFFFFFF,
            int(gid) & 0xFFFFFFFF,
            int(mode),
            None if rdev is None else int(rdev) & 0xFFFFFFFF,
        )
    found: dict[str, int] = {}
    for line in text.split(b"\n"):
        for start in range(0, len(line) or 1, _CHUNK):
            chunk = line[start : start + _CHUNK]
            for key, skip, name in _KEYS:
                if chunk.startswith(key):
                    found[name] = _atoi(chunk[skip:]) & 0xFFFFFFFF
                    break
    return Meta(**found)


def decode_xattrs(attrs: dict[bytes, bytes]) -> Meta:
    """Reads mapped-xattr attributes; one of a wrong length counts as absent, as for QEMU."""
    found: dict[str, int] = {}
    for name, size in (("uid", 4), ("gid", 4), ("mode", 4), ("rdev", 8)):
        value = attrs.get(VIRTFS_PREFIX + name.encode())
        if value is not None and len(value) == size:
            found[name] = int.from_bytes(value, "little") & 0xFFFFFFFF
    return Meta(**found)


def _signed(value: int) -> int:
    return value - 0x100000000 if value > 0x7FFFFFFF else value


def _atoi(text: bytes) -> int:
    """C's atoi on a 64-bit glibc: strtol, saturated, then cut to int by the caller's mask."""
    match = _ATOI.match(text.split(b"\0", 1)[0])
    if not match:
        return 0
    digits = match[1][:32]  # enough to saturate; int() refuses thousands of digits
    return max(-(2**63), min(2**63 - 1, int(digits)))
