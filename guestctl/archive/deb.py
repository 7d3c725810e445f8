"""The data of a Debian package: one member of an `ar` archive."""

from __future__ import annotations

from guestctl.archive.stream import Stream
from guestctl.errors import ArchiveError

__all__ = ["AR_MAGIC", "deb_data"]

AR_MAGIC = b"!<arch>\n"


class _Member:
    """The bytes of one member of an `ar` archive."""

    def __init__(self, stream: Stream, size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, n: int = -1) -> bytes:
        n = self._left if n < 0 else min(n, self._left)
        data = self._stream.upto(n)
        if len(data) < n:
            raise self._stream.cut()
        self._left -= n
        return data


def deb_data(stream: Stream) -> _Member:
    """Returns a file object of the package's data.tar, in whatever compression."""
    stream.exactly(len(AR_MAGIC))
    while True:
        header = stream.upto(60)
        if not header:
            raise ArchiveError(f"{stream.name}: no data.tar in it", hint="is it a Debian package?")
        if len(header) < 60 or header[58:60] != b"`\n":
            raise ArchiveError(f"{stream.name}: a broken ar header")
        digits = header[48:58].strip()
        if not digits.isdigit():
            raise ArchiveError(f"{stream.name}: a broken ar header")
        size = int(digits)
        name = header[:16].strip(b" /")
        stream.at = name
        if name.startswith(b"data.tar"):
            return _Member(stream, size)
        stream.skip(size + size % 2)
