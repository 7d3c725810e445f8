"""Goes ahead of a walk in a second process: makes the headers of files, and reads small ones.

What is odd in any way is left to the walk itself: all warnings and errors come from there.
"""

from __future__ import annotations

import contextlib
import marshal
import mmap
import os
import select
import socket
import stat
from collections.abc import Callable
from typing import Any

from guestctl.archive.paxout import encode_entry
from guestctl.archive.sparse import HOLE
from guestctl.archive.tarfmt import BLOCK
from guestctl.companion import PACKET_MAX, Companion, receive, start_companion
from guestctl.entry import Entry
from guestctl.errors import TreeError
from guestctl.tree.state import OPEN_FILE
from guestctl.tree.walk import GuideLost, Item, Level, Run, Told, Walk
from guestctl.vmeta import ASIDE_PREFIX, META_MAX, Meta, decode_text

__all__ = ["Scout", "serve"]

_FIRST = 16  # folders after which a companion is worth its start
_ITEMS = 1024
_BYTES = 1 << 16  # of a packet
_SMALL = 1 << 15  # files below are read here; so much the walk has to do that both are busy
_SLOT = 1 << 19
_SLOTS = 8
_DEADLINE = 600  # seconds for the next piece
_NO_CLAMP = 1 << 80  # ns; beyond all times
_PADDING = bytes(BLOCK)
_READ: Told = (b"", 0, 0)


def serve(
    channel_fd: int, _parent: int, root: int, ring: int, aside: int, clamp: int, small: int
) -> None:
    """The companion. It ends when there is no more, when anything fails, or nobody listens."""
    channel = socket.socket(fileno=channel_fd)
    channel.send(b"ready")
    order, _ = receive(channel)
    if order is not None:
        with (
            mmap.mmap(ring, _SLOT * _SLOTS) as memory,
            memoryview(memory) as view,
            contextlib.suppress(OSError, TreeError),
        ):
            _Ahead(channel, view, bool(aside), clamp, small).go(root, *order)
            # What is left unread when a socket closes would reach the other side as an error.
            while channel.recv(16):
                pass


class _Ahead:
    """The companion's work: packets of items, each with a slot of the ring for what was read."""

    def __init__(
        self, channel: socket.socket, ring: memoryview, aside: bool, clamp: int, small: int
    ) -> None:
        self._channel = channel
        self._ring = ring
        self._aside = aside
        self._clamp = clamp
        self._small = small
        self._items: list[Item] = []
        self._told = 0  # bytes of headers that go into the packet
        self._slot = 0
        self._at = 0  # where in the ring the next file goes
        self._end = _SLOT
        self._lent = 0  # slots that the walk has
        # The run at the end of the items: where it begins, and how many files it is.
        self._run: list[int] | None = None

    def go(self, root: int, path: bytes, after: bytes) -> None:
        depth = after.count(b"/") + 1 if after else 0
        items = self._items
        for level, name, form, at, _fd, _told in Walk(root, path, metadata=True, after=after):
            above = at.count(b"/")
            if above < depth:
                self._run = None
                items += [None] * (depth - above)
                depth = above
            told = None
            if form == stat.S_IFDIR:
                depth += 1
            elif form == stat.S_IFREG:
                told = self._plain(level, name, at)
                if told is _READ:
                    continue
            self._run = None
            items.append((name, form, told))
            self._told += len(name)
            if len(items) >= _ITEMS or self._told >= _BYTES:
                self._send()
        items += [None] * (depth + 1)
        self._send()

    def _send(self) -> None:
        """Sends what there is, and takes the next slot once it is free."""
        packet = marshal.dumps(self._items)
        if len(packet) > PACKET_MAX:
            raise TreeError("names too long")  # the walk goes on alone
        self._channel.send(packet)
        self._items.clear()
        self._told = 0
        self._run = None
        self._lent += 1
        if self._lent == _SLOTS:
            if not self._channel.recv(16):
                raise TreeError("nobody listens")
            self._lent -= 1
        self._slot = (self._slot + 1) % _SLOTS
        self._at = self._slot * _SLOT
        self._end = self._at + _SLOT

    def _plain(self, level: Level, name: bytes, at: bytes) -> Told | None:
        """Deals with a plain file that has plain metadata; None for all else.

        A small one is read into the ring, and `_READ` returned; of a larger one its header.
        """
        told = fd = None
        try:
            meta = self._meta(level.meta, name) if level.meta >= 0 else None
            if meta is None:
                return None
            fd = os.open(name, OPEN_FILE, dir_fd=level.fd)
            info = os.fstat(fd)
            size = info.st_size
            if info.st_nlink != 1 or not stat.S_ISREG(info.st_mode):
                told = None
            elif size < self._small:
                if not os.listxattr(fd) and self._read(
                    fd, name, _header(at, meta, info, self._clamp), size
                ):
                    told = _READ
            elif info.st_blocks * 512 + HOLE > size:
                told = _header(at, meta, info, self._clamp), size, info.st_mtime_ns
                self._told += len(told[0])
        except OSError:
            told = None
        finally:
            if fd is not None:
                os.close(fd)
        return told

    def _read(self, fd: int, name: bytes, header: bytes, size: int) -> bool:
        length = len(header) + size + -size % BLOCK
        if length > _SLOT:
            return False  # a very long name
        if self._at + length > self._end:
            self._send()
        start = self._at
        end = start + len(header)
        ring = self._ring
        ring[start:end] = header
        if size:
            if os.preadv(fd, [ring[end : end + size]], 0) != size:
                return False
            end += size
            if rest := -size % BLOCK:
                ring[end : end + rest] = _PADDING[:rest]
        self._at = start + length
        if self._run is None:
            self._run = [start, length, 1]
            self._items.append((name, stat.S_IFREG, (start, length, 1)))
            self._told += len(name)
        else:
            run = self._run
            run[1] += length
            run[2] += 1
            self._items[-1] = name, stat.S_IFREG, (run[0], run[1], run[2])
        return True

    def _meta(self, folder: int, name: bytes) -> Meta | None:
        """The metadata of a plain file, if it is complete and nothing is kept aside with it."""
        fd = os.open(name, OPEN_FILE, dir_fd=folder)
        try:
            text = os.read(fd, META_MAX + 1)
            if self._aside and any(
                os.fsencode(key).startswith(ASIDE_PREFIX) for key in os.listxattr(fd)
            ):
                return None
        finally:
            os.close(fd)
        if not text or len(text) > META_MAX:
            return None
        meta = decode_text(text)
        complete = meta.mode is not None and meta.uid is not None and meta.gid is not None
        return meta if complete and (meta.mode or 0) & 0o170000 == stat.S_IFREG else None


def _header(at: bytes, meta: Meta, info: os.stat_result, clamp: int) -> bytes:
    assert meta.mode is not None and meta.uid is not None and meta.gid is not None
    mtime = min(info.st_mtime_ns, clamp)
    entry = Entry(at, meta.mode & 0o177777, meta.uid, meta.gid, mtime, info.st_size)
    return encode_entry(entry, payload=info.st_size)


class Scout:
    """The walk's side; see `walk.Guide`."""

    def __init__(
        self, root: int, *, aside: bool, clamp: int | None, settle: Callable[[], None]
    ) -> None:
        """`aside`: some metadata files have attributes. No mtime is later than `clamp` (ns).

        `settle` is called before the memory of earlier runs is used again.
        """
        self._arguments = [int(aside), _NO_CLAMP if clamp is None else clamp, _SMALL]
        self._root = root
        self._settle = settle
        self._count = 0
        self._companion: Companion | None = None
        self._items: list[Item] = []
        self._lent = False
        self._view = memoryview(b"")

    def ready(self) -> bool:
        """Whether there is a companion by now; each call stands for one folder."""
        if self._companion is None:
            self._count += 1
            if self._count == _FIRST:
                self._start()
        return self._companion is not None and self._companion.ready()

    def _start(self) -> None:
        fd = os.memfd_create("guestctl-collect", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, _SLOT * _SLOTS)
            self._view = memoryview(mmap.mmap(fd, _SLOT * _SLOTS, prot=mmap.PROT_READ))
            self._companion = start_companion(__name__, "serve", [self._root, fd], self._arguments)
        finally:
            os.close(fd)

    def begin(self, top: bytes, after: bytes) -> None:
        assert self._companion is not None
        with contextlib.suppress(OSError):  # the first `next` finds that it is lost
            self._companion.socket.send(marshal.dumps((top, after)))

    def next(self) -> Item:
        if not self._items:
            self._items = self._more()
            self._items.reverse()
        return self._items.pop()

    def content(self, run: Run) -> memoryview:
        """Headers and content of the files of a run; good until the next step."""
        return self._view[run[0] : run[0] + run[1]]

    def _more(self) -> Any:
        assert self._companion is not None
        items = None
        with contextlib.suppress(OSError):
            if self._lent:
                self._settle()
                self._companion.socket.send(b"free")
            poll = select.poll()
            poll.register(self._companion.socket, select.POLLIN)
            if poll.poll(_DEADLINE * 1000):
                items, _ = receive(self._companion.socket)
        if not items:
            raise GuideLost
        self._lent = True
        return items

    def close(self) -> None:
        if self._companion is not None:
            self._companion.close()
            self._companion = None
        self._view = memoryview(b"")  # what was lent of it may still be in use
