"""Archives as a sequence of entries: tar in every dialect, cpio, and the data of a .deb.

The tar reader is ours, since it decides the speed of staging; libarchive reads cpio.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

from guestctl.archive.compressed import decompressed
from guestctl.archive.deb import AR_MAGIC, deb_data
from guestctl.archive.stream import Stream
from guestctl.archive.tar import TarReader
from guestctl.archive.tarfmt import BLOCK, is_header
from guestctl.entry import Entry
from guestctl.errors import ArchiveError

__all__ = ["Reader", "open_archive"]

_ZERO = bytes(BLOCK)
_CPIO = (b"070701", b"070702", b"070707", b"\xc7\x71", b"\x71\xc7")


class Reader(Protocol):
    """Yields entries; `stream` then stands at the entry's payload, of which `left` bytes remain.

    The payload is the file's content, or the regions of `entry.sparse` one after the other. What
    is left unread is skipped. `warnings` grows while reading.
    """

    name: str
    stream: Stream
    left: int
    late_content: bool  # a hard link's payload is the content of what it links to (cpio)
    warnings: list[str]

    def __iter__(self) -> Iterator[Entry]: ...

    def close(self) -> None: ...


class _CpioArchive:
    late_content = True

    def __init__(self, stream: Stream) -> None:
        from guestctl.archive import libarc

        self.name = stream.name
        self.warnings: list[str] = []
        self.left = 0
        self._outer = stream
        self._cpio = libarc.CpioReader(stream.upto, stream.name, _CPIO)
        self.stream = Stream(self._cpio.read, stream.name)

    def __iter__(self) -> Iterator[Entry]:
        for entry in self._cpio:
            self.stream.at = entry.path
            self.left = self._cpio.size
            yield entry
            if self.left:
                self.stream.skip(self.left)
        clean = self._outer.drain()
        if self._cpio.followed() or not clean:
            self.warnings.append(f"{self.name}: more follows the archive's end: left out")

    def close(self) -> None:
        self._cpio.close()


@contextlib.contextmanager
def open_archive(
    source: int | BinaryIO,
    name: str,
    *,
    ratio: float = 1000.0,
    floor: int = 1 << 28,
    inside: bool = False,
) -> Iterator[Reader]:
    """Yields a reader of an archive of any known format and compression.

    `inside`: it is the data of a package, and cannot be another.

    :raise ArchiveError: it is none, and while reading: corrupt, cut short, or a bomb.
    """
    with decompressed(source, name, ratio, floor) as stream:
        head = stream.peek(BLOCK)
        if head.startswith(AR_MAGIC):
            if inside:
                raise ArchiveError(f"{name}: a package within a package")
            member: Any = deb_data(stream)
            with open_archive(member, name, ratio=ratio, floor=floor, inside=True) as inner:
                yield inner
            return
        if not head:
            raise ArchiveError(f"{name}: the archive is empty")
        reader: Reader
        if is_header(head) or head == _ZERO:
            reader = TarReader(stream)
        elif head.startswith(_CPIO):
            reader = _CpioArchive(stream)
        else:
            raise ArchiveError(
                f"{name}: neither tar, cpio nor deb", hint="is it an archive, and whole?"
            )
        try:
            yield reader
        finally:
            reader.close()
