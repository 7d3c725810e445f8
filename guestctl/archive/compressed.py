"""Compressed streams, expanded in a thread of their own.

Compression is recognised by its magic. gzip, xz and bzip2 go through Python's modules, which
say when a stream is cut short; all others (zstd, lz4, lzip, compress) through libarchive.
"""

from __future__ import annotations

import bz2
import contextlib
import lzma
import os
import queue
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from guestctl.archive.stream import CHUNK, Read, Stream
from guestctl.errors import ArchiveError

__all__ = ["decompressed"]

_XZ_MEMORY = 80 << 20  # bytes; what `xz -9` makes asks for 65 MiB
_ZSTD_MEMORY = 32 << 20  # bytes; twice that is taken; `zstd --ultra -20` asks for as much
_AHEAD = 8  # chunks a decompressor may be ahead


def _gunzip(read: Read, name: str) -> Iterator[bytes]:
    data = read(CHUNK)
    while data:
        engine = zlib.decompressobj(31)
        while not engine.eof:
            if not data:
                data = read(CHUNK)
                if not data:
                    raise ArchiveError(f"{name}: the gzip stream is cut short")
            out = engine.decompress(data, CHUNK)
            data = engine.unconsumed_tail
            if out:
                yield out
        data = engine.unused_data or read(CHUNK)
        data = data.lstrip(b"\0") or read(CHUNK)  # tapes and some tools pad with zeros
        if data and not (data + (b"" if len(data) > 1 else read(1))).startswith(b"\x1f\x8b"):
            raise ArchiveError(f"{name}: something else follows the gzip stream")


def _expand(read: Read, name: str, make: Callable[[], Any], what: str) -> Iterator[bytes]:
    data = read(CHUNK)
    while data:
        engine = make()
        while not engine.eof:
            if engine.needs_input and not data:
                data = read(CHUNK)
                if not data:
                    raise ArchiveError(f"{name}: the {what} stream is cut short")
            out = engine.decompress(data, CHUNK)
            data = b""
            if out:
                yield out
        data = (engine.unused_data or read(CHUNK)).lstrip(b"\0") or read(CHUNK)


def _by_libarchive(*kinds: str) -> Callable[[Read, str], Iterator[bytes]]:
    def expand(read: Read, name: str) -> Iterator[bytes]:
        from guestctl.archive import libarc

        return libarc.filtered(read, name, *kinds)

    return expand


def _zstd(read: Read, name: str) -> Iterator[bytes]:
    head = read(CHUNK)
    if (window := _zstd_window(head)) > _ZSTD_MEMORY:
        raise ArchiveError(
            f"{name}: its window of {window >> 20} MiB takes too much memory to unpack",
            hint="if you trust it: zstd -dc --long=31 ARCHIVE | guestctl virtfs stage - TREE",
        )
    rest = [head]
    return _by_libarchive("zstd")(lambda n: rest.pop() if rest else read(n), name)


def _zstd_window(head: bytes) -> int:
    """How far back a zstd frame may look, in bytes (RFC 8878, 3.1.1.1); 0 if it is cut short."""
    flags, field = head[4:5], head[5:6]
    if not field:
        return 0
    if not flags[0] & 0x20:
        base = 1 << (10 + (field[0] >> 3))
        return base + (base >> 3) * (field[0] & 7)
    # A single segment: all of the content, whose size follows the dictionary's number.
    begin = 5 + (0, 1, 2, 4)[flags[0] & 3]
    kind = flags[0] >> 6
    size = int.from_bytes(head[begin : begin + (1 << kind)], "little")
    return size + 256 if kind == 1 else size


_MAGIC: tuple[tuple[bytes, Callable[[Read, str], Iterator[bytes]]], ...] = (
    (b"\x1f\x8b", _gunzip),
    (b"\xfd7zXZ\0", lambda read, name: _expand(read, name, _xz, "xz")),
    (b"BZh", lambda read, name: _expand(read, name, bz2.BZ2Decompressor, "bzip2")),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"\x04\x22\x4d\x18", _by_libarchive("lz4")),
    (b"\x02\x21\x4c\x18", _by_libarchive("lz4")),  # lz4 as it was before frames
    (b"LZIP", _by_libarchive("lzip")),
    (b"\x1f\x9d", _by_libarchive("compress")),
)


def _expander(head: bytes) -> Callable[[Read, str], Iterator[bytes]] | None:
    """What expands a stream that begins so; None if it is not compressed."""
    for magic, function in _MAGIC:
        if head.startswith(magic):
            return function
    if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return _by_libarchive("zstd", "lz4")  # both may begin with frames that are to be skipped
    if _is_lzma(head):
        return lambda read, name: _expand(read, name, _lzma_alone, "lzma")
    return None


def _is_lzma(head: bytes) -> bool:
    """LZMA's first format has no magic: sane properties, dictionary and size have to do."""
    if len(head) < 13 or head[0] >= 9 * 5 * 5:
        return False
    dictionary = int.from_bytes(head[1:5], "little")
    size = int.from_bytes(head[5:13], "little")
    rest = dictionary & (dictionary - 1)  # all but its lowest bit: 2^n, or 2^n + 2^(n-1)
    if dictionary < 1 << 12 or (rest and rest != 2 * (dictionary ^ rest)):
        return False
    return size == 2**64 - 1 or 0 < size < 1 << 40


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _lzma_alone() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_XZ_MEMORY)


class _Ahead:
    """Runs an iterator of chunks in a thread, a bounded number of chunks ahead."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, args=(chunks,), daemon=True)
        self._thread.start()

    def _put(self, item: bytes | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def _run(self, chunks: Iterator[bytes]) -> None:
        try:
            for chunk in chunks:
                self._put(chunk)
                if self._stop.is_set():
                    return
            self._put(b"")
        except BaseException as error:
            self._put(error)

    def read(self, _size: int) -> bytes:
        if self._ended:
            return b""
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        self._ended = not item
        return item

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)


@contextlib.contextmanager
def decompressed(source: int | BinaryIO, name: str, ratio: float, floor: int) -> Iterator[Stream]:
    """Yields the plain bytes of `source`, an open descriptor or a binary file object.

    :raise ArchiveError: while reading: it is corrupt, cut short, or more than `ratio` times as
        large as what was read of it (once it is more than `floor` bytes).
    """
    fd = source if isinstance(source, int) else -1

    def read(n: int) -> bytes:
        try:
            return os.read(fd, n) if isinstance(source, int) else source.read(n)
        except OSError as error:
            raise ArchiveError(f"{name}: cannot be read: {error.strerror or error}") from error

    regular = fd >= 0 and stat.S_ISREG(os.fstat(fd).st_mode)
    plain = Stream(read, name, fd=fd if regular else -1)
    head = plain.peek(16)
    expand = _expander(head)
    if expand is None:
        yield plain
        return
    taken = 0

    def pull(n: int) -> bytes:
        nonlocal taken
        data = plain.upto(n)
        taken += len(data)
        return data

    def guarded() -> Iterator[bytes]:
        given = 0
        try:
            for chunk in expand(pull, name):
                given += len(chunk)
                if given > floor and given > ratio * taken:
                    raise ArchiveError(
                        f"{name}: it unpacks to more than {ratio:g} times its size",
                        hint="a bomb? raise the ratio limit if you trust it",
                    )
                yield chunk
        except lzma.LZMAError as error:
            if "Memory usage limit" not in str(error):
                raise ArchiveError(f"{name}: corrupt compressed data: {error}") from error
            raise ArchiveError(
                f"{name}: its dictionary takes more than {_XZ_MEMORY >> 20} MiB to unpack",
                hint="if you trust it: xz -dc ARCHIVE | guestctl virtfs stage - TREE",
            ) from error
        except (zlib.error, OSError, EOFError) as error:
            raise ArchiveError(f"{name}: corrupt compressed data: {error}") from error

    ahead = _Ahead(guarded())
    try:
        yield Stream(ahead.read, name)
    finally:
        ahead.close()
