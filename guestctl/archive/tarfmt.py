"""The tar headers that are read: v7, ustar, GNU and pax. Pure, no I/O.

Sources: POSIX.1-2008 pax; the GNU tar manual, "Tar Internals"; star's and libarchive's tar(5).
"""

from __future__ import annotations

import stat
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache

__all__ = [
    "BLOCK",
    "Header",
    "is_header",
    "pad",
    "parse_header",
    "parse_number",
    "parse_pax",
    "parse_time",
]

BLOCK = 512
_OCTAL = b"01234567"
_RECORDS_MAX = 1 << 17  # of one pax payload: each takes ten times its bytes of memory

# name, mode with uid and gid, size, mtime, type, target, magic, device, prefix
_FIELDS = struct.Struct("100s24s12s12s8xs100s6s66x8s8s155s12x")
_FORMAT = {
    b"0": stat.S_IFREG,
    b"\0": stat.S_IFREG,
    b"1": stat.S_IFREG,
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
    b"D": stat.S_IFDIR,  # GNU dump directory: its payload is a list of names
}


@dataclass(slots=True)
class Header:
    """One header block, parsed. `kind` is the type flag, `size` that of the payload."""

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int  # seconds
    target: bytes
    major: int
    minor: int
    block: bytes

    @property
    def format(self) -> int:
        """The file type bits; what is unknown is a regular file, as POSIX says."""
        return _FORMAT.get(self.kind, stat.S_IFREG)


def pad(size: int) -> int:
    """The bytes of padding after a payload of `size` bytes."""
    return -size % BLOCK


def is_header(block: bytes) -> bool:
    """Whether the checksum holds, summed as unsigned or, as some old archivers did, signed."""
    if len(block) != BLOCK:
        return False
    stored, wanted = _checksum(block[148:156])
    if stored < 0:
        return False
    # adler32's low half is 1 + the sum of all bytes modulo 65521: C speed for the usual case.
    if zlib.adler32(block) & 0xFFFF == wanted:
        return True
    rest = block[:148] + block[156:]
    return stored == 256 + sum(byte - 256 if byte > 127 else byte for byte in rest)


@lru_cache(maxsize=8192)
def _checksum(field: bytes) -> tuple[int, int]:
    """What a checksum field says, and the low half of adler32 that a block with it has, or -1."""
    try:
        stored = parse_number(field)
    except ValueError:
        return -1, -1
    total = stored - 256 + sum(field)
    return stored, (total + 1) % 65521 if 0 <= total <= 255 * BLOCK else -1


@lru_cache(maxsize=4096)
def parse_number(text: bytes) -> int:
    """Reads an octal or a base-256 field; ValueError if it is neither."""
    if text and text[0] & 0x80:
        value = int.from_bytes(text, "big") - (1 << (8 * len(text) - 1))
        if text[0] & 0x40:  # negative: two's complement in the bits after the marker
            value -= 1 << (8 * len(text) - 1)
        return value
    digits = text.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    if digits.strip(_OCTAL):
        raise ValueError(f"bad number {digits!r}")
    return int(digits, 8)


@lru_cache(maxsize=1024)
def _owner(fields: bytes) -> tuple[int, int, int]:
    """Mode, uid and gid: the same for most members."""
    return (
        parse_number(fields[:8]) & 0o7777,
        parse_number(fields[8:16]),
        parse_number(fields[16:]),
    )


def parse_header(block: bytes) -> Header:
    """Parses a block that `is_header` accepts; ValueError for a broken number."""
    name, owner, size, mtime, kind, target, magic, major, minor, prefix = _FIELDS.unpack(block)
    name = name.split(b"\0", 1)[0]
    numbers = (0, 0)
    if magic[:5] == b"ustar":
        if kind in b"34":
            numbers = parse_number(major), parse_number(minor)
        # GNU keeps times and sparse maps where POSIX has the prefix.
        if magic == b"ustar\0" and prefix[0]:
            width = 131 if block[508:512] == b"tar\0" else 155  # star
            name = prefix[:width].split(b"\0", 1)[0] + b"/" + name
    # Of the usual form; sizes differ too much for a cache to know them.
    usual = size[11] in b"\0 " and not size[:11].strip(_OCTAL)
    length = int(size[:11], 8) if usual else parse_number(size)
    if length < 0:
        raise ValueError("negative size")
    return Header(
        name,
        kind,
        *_owner(owner),
        length,
        parse_number(mtime),
        target.split(b"\0", 1)[0] if target[0] else b"",
        *numbers,
        block,
    )


def parse_pax(body: bytes) -> list[tuple[bytes, bytes]]:
    """Splits a pax payload into (keyword, value); ValueError if malformed."""
    records: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(body):
        if body[at] == 0 and not body[at:].strip(b"\0"):
            break  # some archivers pad with NULs
        space = body.find(b" ", at, at + 20)
        digits = body[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise ValueError("bad length of a pax record")
        end = at + int(digits)
        if end > len(body) or end <= space + 1 or body[end - 1] != 0x0A:
            raise ValueError("bad length of a pax record")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise ValueError("a pax record without a keyword")
        if len(records) == _RECORDS_MAX:
            raise ValueError(f"more than {_RECORDS_MAX} pax records")
        records.append((key, value))
        at = end
    return records


def parse_time(text: bytes) -> int:
    """Reads a pax time (decimal seconds) as ns, rounded down; ValueError if it is none."""
    whole, _, fraction = text.strip().partition(b".")
    negative = whole.startswith(b"-")
    digits = whole.lstrip(b"+-") or b"0"
    if not digits.isdigit() or (fraction and not fraction.isdigit()) or len(digits) > 20:
        raise ValueError(f"bad time {text[:40]!r}")
    ns = int(digits) * 10**9 + int(fraction[:9].ljust(9, b"0") or 0)
    return -ns if negative else ns
