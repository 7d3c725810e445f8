"""Bytes of an archive in order, from a file, a pipe or a decompressor; and how they are copied."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from guestctl.errors import ArchiveError

__all__ = ["CHUNK", "Read", "Stream", "copy_range", "write_all"]

CHUNK = 1 << 18
_PADDING_MAX = 1 << 24
_BIG = 1 << 16  # from here on the kernel copies, not we

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

    def left_to_others(self, n: int) -> int:
        """Takes bytes that someone else reads from `fd`; their offset."""
        start = self._start + self.offset
        self.skip(n)
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

    def drain(self) -> bool:
        """Reads to the end, so that a decompressor checks its sums and a pipe's writer ends.

        Returns whether there was nothing but zeros. Of a file only so much is looked at as an
        archiver may pad with: it may go on for a terabyte, as a hole.
        """
        rest = self._buffer[self._pos :]
        self._buffer = memoryview(b"")
        self._pos = 0
        clean = not bytes(rest).strip(b"\0")
        seen = 0
        while (self.fd < 0 or (clean and seen < _PADDING_MAX)) and (data := self._read(CHUNK)):
            clean = clean and not data.strip(b"\0")
            seen += len(data)
        return clean
