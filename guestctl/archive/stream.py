"""Bytes of an archive in order: from a file, a pipe, or a decompressor in its own thread.

Compression is recognised by its magic. gzip, xz and bzip2 go through Python's modules, which
say when a stream is cut short; all others (zstd, lz4, lzip, compress) through libarchive.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import lzma
import os
import queue
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from guestctl.errors import ArchiveError

__all__ = ["CHUNK", "Stream", "copy_range", "decompressed", "write_all"]

CHUNK = 1 << 18
_BIG = 1 << 16  # from here on the kernel copies, not we
_AHEAD = 8  # chunks a decompressor may be ahead

Read = Callable[[int], bytes]


def write_all(fd: int, data: bytes | memoryview) -> None:
    done = os.write(fd, data)
    while done < len(data):
        done += os.write(fd, memoryview(data)[done:])


def copy_range(src: int, offset: int, dst: int, size: int) -> int:
    """Copies within the kernel from `offset` of `src` to where `dst` stands; returns the bytes.

    Fewer than `size` means that `src` ended.
    """
    done = 0
    ways = [_by_copy_file_range, _by_sendfile, _by_hand]
    while done < size:
        try:
            n = ways[0](src, offset + done, dst, size - done)
        except OSError as error:
            if error.errno in _REAL or len(ways) == 1:
                raise
            n = 0
        if n == 0:
            if len(ways) == 1:
                break
            ways.pop(0)  # not between these files; some file systems say so by 0
        done += n
    return done


_REAL = frozenset((errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT))


def _by_copy_file_range(src: int, offset: int, dst: int, size: int) -> int:
    return os.copy_file_range(src, dst, size, offset)


def _by_sendfile(src: int, offset: int, dst: int, size: int) -> int:
    return os.sendfile(dst, src, offset, size)


def _by_hand(src: int, offset: int, dst: int, size: int) -> int:
    data = os.pread(src, min(size, CHUNK), offset)
    write_all(dst, data)
    return len(data)


class Stream:
    """A buffered reader that knows where it is, for messages, and whether it can be seeked."""

    def __init__(self, read: Read, name: str, *, fd: int = -1) -> None:
        """`fd` is that of a regular file whose offset `read` follows, or -1."""
        self.name = name
        self.at = b""  # the entry being read, for messages
        self.fd = fd
        self._read = read
        self._buffer = memoryview(b"")
        self._pos = 0
        self._size = os.fstat(fd).st_size if fd >= 0 else 0
        self._start = os.lseek(fd, 0, os.SEEK_CUR) if fd >= 0 else 0
        self.offset = 0  # bytes handed out

    def cut(self) -> ArchiveError:
        where = f" within {os.fsdecode(self.at)}" if self.at else ""
        return ArchiveError(
            f"{self.name}: the archive is cut short{where}", hint="fetch or make it again"
        )

    def upto(self, n: int) -> bytes:
        """Returns `n` bytes, or fewer at the end."""
        if len(self._buffer) - self._pos >= n:
            data = self._buffer[self._pos : self._pos + n]
            self._pos += n
            self.offset += n
            return bytes(data)
        parts = []
        missing = n
        while missing:
            piece = self._some(missing)
            if not piece:
                break
            parts.append(piece)
            missing -= len(piece)
        return b"".join(parts)

    def _some(self, n: int) -> memoryview:
        if self._pos >= len(self._buffer):
            self._buffer = memoryview(self._read(CHUNK))
            self._pos = 0
        piece = self._buffer[self._pos : self._pos + n]
        self._pos += len(piece)
        self.offset += len(piece)
        return piece

    def exactly(self, n: int) -> bytes:
        data = self.upto(n)
        if len(data) != n:
            raise self.cut()
        return data

    def peek(self, n: int) -> bytes:
        """Returns the next bytes without taking them; at most one chunk."""
        while len(self._buffer) - self._pos < n:
            more = self._read(CHUNK)
            if not more:
                break
            self._buffer = memoryview(bytes(self._buffer[self._pos :]) + more)
            self._pos = 0
        return bytes(self._buffer[self._pos : self._pos + n])

    def skip(self, n: int) -> None:
        if n <= len(self._buffer) - self._pos:
            self._pos += n
            self.offset += n
            return
        if self.region(n) >= 0:
            return
        while n:
            piece = self._some(n)
            if not piece:
                raise self.cut()
            n -= len(piece)

    def region(self, n: int) -> int:
        """Takes `n` bytes as a region of `fd`; its offset, or -1 if small or no file."""
        if self.fd < 0 or n < _BIG:
            return -1
        start = self._start + self.offset
        if start + n > self._size:
            raise self.cut()
        self.offset += n
        inside = len(self._buffer) - self._pos
        if n <= inside:
            self._pos += n
        else:
            self._buffer = memoryview(b"")
            self._pos = 0
            os.lseek(self.fd, start + n, os.SEEK_SET)
        return start

    def copy(self, fd: int, n: int) -> None:
        """Writes the next `n` bytes to where `fd` stands."""
        pos = self._pos
        if n <= len(self._buffer) - pos and n < _BIG:
            self._pos = pos + n
            self.offset += n
            write_all(fd, self._buffer[pos : pos + n])
            return
        start = self.region(n)
        if start >= 0:
            if copy_range(self.fd, start, fd, n) != n:
                raise self.cut()
            return
        while n:
            piece = self._some(n)
            if not piece:
                raise self.cut()
            write_all(fd, piece)
            n -= len(piece)

    def drain(self) -> None:
        """Reads to the end, so that a decompressor checks its sums and a pipe's writer ends."""
        if self.fd >= 0:
            return
        self._buffer = memoryview(b"")
        while self._read(CHUNK):
            pass


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


def _libarchive(read: Read, name: str) -> Iterator[bytes]:
    from guestctl.archive import libarc

    return libarc.filtered(read, name)


_MAGIC: tuple[tuple[bytes, Callable[[Read, str], Iterator[bytes]]], ...] = (
    (b"\x1f\x8b", _gunzip),
    (b"\xfd7zXZ\0", lambda read, name: _expand(read, name, lzma.LZMADecompressor, "xz")),
    (b"BZh", lambda read, name: _expand(read, name, bz2.BZ2Decompressor, "bzip2")),
    (b"\x28\xb5\x2f\xfd", _libarchive),
    (b"\x04\x22\x4d\x18", _libarchive),
    (b"LZIP", _libarchive),
    (b"\x1f\x9d", _libarchive),
    (b"]\0\0", lambda read, name: _expand(read, name, _lzma_alone, "lzma")),
)


def _lzma_alone() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE)


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
    read: Read = source.read if not isinstance(source, int) else lambda n: os.read(fd, n)
    regular = fd >= 0 and stat.S_ISREG(os.fstat(fd).st_mode)
    plain = Stream(read, name, fd=fd if regular else -1)
    head = plain.peek(16)
    expand = next((function for magic, function in _MAGIC if head.startswith(magic)), None)
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
        except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            raise ArchiveError(f"{name}: corrupt compressed data: {error}") from error

    ahead = _Ahead(guarded())
    try:
        yield Stream(ahead.read, name)
    finally:
        ahead.close()
