"""Goes ahead of a walk in a second process: reads metadata, and makes the headers of files.

What is odd in any way is left to the walk itself: all warnings and errors come from there.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import socket
import stat
from typing import Any

from guestctl.archive.paxout import encode_entry
from guestctl.archive.sparse import HOLE
from guestctl.companion import Companion, receive, start_companion
from guestctl.entry import Entry
from guestctl.errors import TreeError
from guestctl.tree.state import OPEN_FILE
from guestctl.tree.walk import GuideLost, Level, Told, Walk
from guestctl.vmeta import ASIDE_PREFIX, META_MAX, decode_text

__all__ = ["Scout", "serve"]

_FIRST = 16  # folders after which a companion is worth its start
_ITEMS = 256
_BYTES = 1 << 16
_DEADLINE = 600  # seconds for the next piece
_NO_CLAMP = 1 << 80  # ns; beyond all times

Item = tuple[bytes, int, Told | None] | None


def serve(channel_fd: int, _parent: int, root: int, aside: int, clamp: int) -> None:
    """The companion. It ends when there is no more, when anything fails, or nobody listens."""
    channel = socket.socket(fileno=channel_fd)
    channel.send(b"ready")
    order, _ = receive(channel)
    if order is None:
        return
    path, after = order
    items: list[Item] = []
    size = 0
    depth = after.count(b"/") + 1 if after else 0
    with contextlib.suppress(OSError, TreeError):
        for level, name, form, at, _fd, _told in Walk(root, path, metadata=True, after=after):
            above = at.count(b"/")
            items += [None] * (depth - above)
            depth = above
            told = None
            if form == stat.S_IFDIR:
                depth += 1
            elif form == stat.S_IFREG:
                told = _told_of(level, name, at, bool(aside), clamp)
                size += len(told[0]) if told else 0
            items.append((name, form, told))
            size += len(name)
            if len(items) >= _ITEMS or size >= _BYTES:
                channel.send(marshal.dumps(items))
                items = []
                size = 0
        items += [None] * (depth + 1)
        channel.send(marshal.dumps(items))


def _told_of(level: Level, name: bytes, at: bytes, aside: bool, clamp: int) -> Told | None:
    """The header of a plain file with plain metadata; None for all else."""
    if level.meta < 0:
        return None
    try:
        fd = os.open(name, OPEN_FILE, dir_fd=level.meta)
    except OSError:
        return None
    try:
        text = os.read(fd, META_MAX + 1)
        if aside and any(os.fsencode(key).startswith(ASIDE_PREFIX) for key in os.listxattr(fd)):
            return None
    except OSError:
        return None
    finally:
        os.close(fd)
    info = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
    meta = decode_text(text)
    if (
        not text
        or len(text) > META_MAX
        or meta.mode is None
        or meta.uid is None
        or meta.gid is None
        or meta.mode & 0o170000 != stat.S_IFREG
        or not stat.S_ISREG(info.st_mode)
        or info.st_nlink != 1
        or info.st_blocks * 512 + HOLE <= info.st_size
    ):
        return None
    mtime = min(info.st_mtime_ns, clamp)
    entry = Entry(at, meta.mode & 0o177777, meta.uid, meta.gid, mtime, info.st_size)
    return encode_entry(entry, payload=info.st_size), info.st_size, info.st_mtime_ns


class Scout:
    """The walk's side; see `walk.Guide`."""

    def __init__(self, root: int, *, aside: bool, clamp: int | None) -> None:
        """`aside`: some metadata files have attributes. No mtime is later than `clamp` (ns)."""
        self._arguments = [int(aside), _NO_CLAMP if clamp is None else clamp]
        self._root = root
        self._count = 0
        self._companion: Companion | None = None
        self._items: list[Item] = []

    def ready(self) -> bool:
        """Whether there is a companion by now; each call stands for one folder."""
        if self._companion is None:
            self._count += 1
            if self._count == _FIRST:
                self._companion = start_companion(__name__, "serve", [self._root], self._arguments)
        return self._companion is not None and self._companion.ready()

    def begin(self, top: bytes, after: bytes) -> None:
        assert self._companion is not None
        with contextlib.suppress(OSError):  # the first `next` finds that it is lost
            self._companion.socket.send(marshal.dumps((top, after)))

    def next(self) -> Item:
        if not self._items:
            self._items = self._more()
            self._items.reverse()
        return self._items.pop()

    def _more(self) -> Any:
        assert self._companion is not None
        poll = select.poll()
        poll.register(self._companion.socket, select.POLLIN)
        items = None
        with contextlib.suppress(OSError):
            if poll.poll(_DEADLINE * 1000):
                items, _ = receive(self._companion.socket)
        if not items:
            raise GuideLost
        return items

    def close(self) -> None:
        if self._companion is not None:
            self._companion.close()
            self._companion = None
