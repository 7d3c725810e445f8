"""The tar headers that are written: pax, and GNU's where pax has no word for it. Pure, no I/O.

Sources: POSIX.1-2008 pax; the GNU tar manual, "Tar Internals".
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Mapping
from functools import lru_cache

from guestctl.archive.tarfmt import BLOCK, pad
from guestctl.entry import Entry

__all__ = ["END", "encode_entry", "sparse_map_text"]

END = bytes(BLOCK * 20)  # two blocks of zeros, to a full record as other archivers write it

_TYPEFLAG = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


def _time(ns: int) -> bytes:
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
        pax.append((b"mtime", _time(entry.mtime)))
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
