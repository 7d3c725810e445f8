"""The tar header codec: v7, ustar, GNU and pax in; pax out. Pure, no I/O.

Sources: POSIX.1-2008 pax; the GNU tar manual, "Tar Internals"; star's and libarchive's tar(5).
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from guestctl.entry import Entry

__all__ = [
    "BLOCK",
    "END",
    "Header",
    "encode_entry",
    "is_header",
    "pad",
    "parse_header",
    "parse_number",
    "parse_pax",
    "parse_time",
    "sparse_map_text",
]

BLOCK = 512
END = bytes(BLOCK * 20)  # two blocks of zeros, to a full record as other archivers write it

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
_TYPEFLAG = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
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
    try:
        stored = parse_number(block[148:156])
    except ValueError:
        return False
    # adler32's low half is 1 + the sum of all bytes modulo 65521: C speed for the usual case.
    total = stored - 256 + _sum(block[148:156])
    if zlib.adler32(block) & 0xFFFF == (total + 1) % 65521 and 0 <= total <= 255 * BLOCK:
        return True
    rest = block[:148] + block[156:]
    return stored == 256 + sum(byte - 256 if byte > 127 else byte for byte in rest)


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
    if digits.strip(b"01234567"):
        raise ValueError(f"bad number {digits!r}")
    return int(digits, 8)


@lru_cache(maxsize=8192)
def _sum(data: bytes) -> int:
    return sum(data)


def parse_header(block: bytes) -> Header:
    """Parses a block that `is_header` accepts; ValueError for a broken number."""
    name = block[:100].split(b"\0", 1)[0]
    kind = block[156:157]
    magic = block[257:263]
    major = minor = 0
    if magic[:5] == b"ustar":
        if kind in b"34":
            major = parse_number(block[329:337])
            minor = parse_number(block[337:345])
        # GNU keeps times and sparse maps where POSIX has the prefix.
        if magic == b"ustar\0" and block[345]:
            width = 131 if block[508:512] == b"tar\0" else 155  # star
            name = block[345 : 345 + width].split(b"\0", 1)[0] + b"/" + name
    size = parse_number(block[124:136])
    if size < 0:
        raise ValueError("negative size")
    return Header(
        name,
        kind,
        parse_number(block[100:108]) & 0o7777,
        parse_number(block[108:116]),
        parse_number(block[116:124]),
        size,
        parse_number(block[136:148]),
        block[157:257].split(b"\0", 1)[0],
        major,
        minor,
        block,
    )


def parse_pax(body: bytes) -> list[tuple[bytes, bytes]]:
    """Splits a pax payload into (keyword, value); ValueError if malformed."""
    records = []
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


def format_time(ns: int) -> bytes:
    whole, rest = divmod(abs(ns), 10**9)
    text = b"%d.%09d" % (whole, rest) if rest else b"%d" % whole
    return (
        b"-" + text.rstrip(b"0")
        if ns < 0 and rest
        else (b"-" + text if ns < 0 else text.rstrip(b"0") if rest else text)
    )


def _pax_record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    size = rest + len(str(rest))
    if size - rest < len(str(size)):
        size += 1
    return b"%d %b=%b\n" % (size, key, value)


def sparse_map_text(regions: list[tuple[int, int]]) -> bytes:
    """The map of GNU's sparse format 1.0, padded to whole blocks."""
    text = b"%d\n" % len(regions) + b"".join(b"%d\n%d\n" % region for region in regions)
    return text + bytes(pad(len(text)))


def _split(path: bytes) -> tuple[bytes, bytes] | None:
    """Splits a long path into ustar's prefix and name; None where it does not fit."""
    if len(path) > 256:
        return None
    cut = path.find(b"/", max(len(path) - 101, 1))
    if not 0 < cut <= 155 or len(path) - cut - 1 > 100 or cut == len(path) - 1:
        return None
    return path[:cut], path[cut + 1 :]


def _utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


@lru_cache(maxsize=1024)
def _owner(mode: int, uid: int, gid: int) -> bytes:
    return b"%07o\0%07o\0%07o\0" % (mode & 0o7777, uid, gid)


@lru_cache(maxsize=64)
def _tail(target: bytes, rdev: tuple[int, int], prefix: bytes) -> bytes:
    """All that follows the type flag: the same for nearly all files."""
    return b"%bustar\00000%b%07o\0%07o\0%b" % (
        target.ljust(100, b"\0"),
        bytes(64),
        rdev[0],
        rdev[1],
        prefix.ljust(167, b"\0"),
    )


def _header(
    name: bytes,
    prefix: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    kind: bytes,
    target: bytes = b"",
    rdev: tuple[int, int] = (0, 0),
) -> bytes:
    block = b"%b%b%011o\0%011o\0        %b%b" % (
        name.ljust(100, b"\0"),
        _owner(mode, uid, gid),
        size,
        mtime,
        kind,
        _tail(target, rdev, prefix),
    )
    # adler32's low half is 1 + the sum modulo 65521, which ASCII alone cannot reach.
    total = (zlib.adler32(block) & 0xFFFF) - 1 if block.isascii() else sum(block)
    return b"%b%06o\0 %b" % (block[:148], total, block[156:])


def _gnu_long(kind: bytes, name: bytes) -> bytes:
    body = name + b"\0"
    head = _header(b"././@LongLink", b"", 0o644, 0, 0, len(body), 0, kind)
    return head + body + bytes(pad(len(body)))


def encode_entry(  # noqa: PLR0912, PLR0915 (one field of the header after the other)
    entry: Entry,
    *,
    payload: int,
    extra: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """Returns all header blocks of `entry`, whose payload (sparse map included) is `payload` bytes.

    The same entry gives the same bytes: no user names, no times but mtime, nothing of this host.

    :raise ValueError: it is a socket, which tar cannot hold.
    """
    form = stat.S_IFMT(entry.mode)
    kind = b"1" if entry.link is not None else _TYPEFLAG.get(form)
    if kind is None:
        raise ValueError("tar has no sockets")
    name = b"./" + entry.path
    if form == stat.S_IFDIR and entry.path:
        name += b"/"
    target = b"./" + entry.link if entry.link is not None else entry.target
    pax: list[tuple[bytes, bytes]] = []
    prefix = b""
    short, sparse = name, entry.sparse is not None and entry.link is None
    # pax wants UTF-8, and GNU tar grumbles at the keyword that says otherwise: names of other
    # bytes go the older GNU way, which everyone reads.
    raw = b""
    if sparse:
        pax += [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.realsize", b"%d" % entry.size),
        ]
        if _utf8(name):
            pax.append((b"GNU.sparse.name", name))
            head, _, tail = name.rpartition(b"/")
            short = head + b"/GNUSparseFile.0/" + tail
    if len(short) > 100:
        split = _split(short)
        if split:
            prefix, short = split
        else:
            if not _utf8(name):
                raw += _gnu_long(b"L", name)
            elif not sparse:
                pax.append((b"path", name))
            short = short[:100]
    if len(target) > 100:
        if _utf8(target):
            pax.append((b"linkpath", target))
        else:
            raw += _gnu_long(b"K", target)
        target = target[:100]
    seconds, rest = divmod(entry.mtime, 10**9)
    if rest or not 0 <= seconds < 1 << 33:
        pax.append((b"mtime", format_time(entry.mtime)))
        seconds = min(max(seconds, 0), (1 << 33) - 1)
    uid, gid = entry.uid, entry.gid
    if uid > 0o7777777:
        pax.append((b"uid", b"%d" % uid))
        uid = 0
    if gid > 0o7777777:
        pax.append((b"gid", b"%d" % gid))
        gid = 0
    size = payload
    if size >= 1 << 33:
        pax.append((b"size", b"%d" % size))
        size = 0
    if extra:
        pax += sorted(extra.items())
    blocks = raw
    if pax:
        body = b"".join(_pax_record(key, value) for key, value in pax)
        blocks += (
            _header(b"./PaxHeaders/entry", b"", 0o644, 0, 0, len(body), 0, b"x")
            + body
            + bytes(pad(len(body)))
        )
    rdev = entry.rdev if kind in b"34" else (0, 0)
    return blocks + _header(short, prefix, entry.mode, uid, gid, size, seconds, kind, target, rdev)
