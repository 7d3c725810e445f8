"""The way through a virtfs tree: every name once, sorted, parents first, following nothing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from guestctl.errors import TreeError
from guestctl.tree.state import OPEN_DIR, open_dir
from guestctl.vmeta import META_DIR, RESERVED

__all__ = ["Guide", "GuideLost", "Item", "Level", "Run", "Step", "Told", "Walk", "shown"]

_OPEN_LEVELS = 100  # folders held open on the way down; those above are found again by ".."


@dataclass(slots=True)
class Level:
    """A folder on the way: its descriptors, and the names in it that are still to come."""

    path: bytes
    fd: int
    meta: int  # of its metadata folder, or -1
    ident: tuple[int, int]
    names: list[tuple[bytes, int]] | None  # in reverse order; the type is the host's; None: unread

    def close(self) -> None:
        for fd in (self.fd, self.meta):
            if fd >= 0:
                os.close(fd)
        self.fd = self.meta = -1


# What a scout says of a file: its whole header in an archive, its size and its mtime in ns.
Told = tuple[bytes, int, int]
# Or of several, of which the last is named: where headers and content lie, length, how many.
Run = tuple[int, int, int]
# A name, its type, and what is told of it; None: the folder ends.
Item = tuple[bytes, int, Told | Run | None] | None
# The folder that an entry lies in, its name, the host's type (0: neither file nor folder), its
# path, a folder's own descriptor or -1, and what was told. All are good until the next step.
Step = tuple[Level, bytes, int, bytes, int, Told | Run | None]


class Guide(Protocol):
    """Someone who goes ahead: the same steps, from the folder on that `begin` names."""

    def ready(self) -> bool: ...

    def begin(self, top: bytes, after: bytes) -> None: ...

    def next(self) -> Item:
        """:raise GuideLost: it knows no more."""

    def content(self, run: Run) -> memoryview: ...


class GuideLost(Exception):
    pass


def shown(path: bytes) -> str:
    return os.fsdecode(path) or "."


def _ident(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def _open_dir(name: bytes, dir_fd: int, at: bytes) -> int:
    try:
        return open_dir(name, dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise TreeError(f"{shown(at)}: not a directory") from None
        raise TreeError(f"{shown(at)}: {error.strerror}") from error


class Walk:
    """A walk over the folder `path` of the tree at `root`, which is not itself a step."""

    def __init__(
        self,
        root: int,
        path: bytes,
        *,
        metadata: bool,
        after: bytes = b"",
        guide: Guide | None = None,
    ) -> None:
        """`metadata`: folders have metadata folders, which are opened with them (mapped-file).

        `after` is the folder below `path` whose first entry is the first step. A `guide` may be
        asked for what comes, once it is ready.

        :raise TreeError: there is no such folder.
        """
        self._metadata = metadata
        self._guide = guide
        self._guided = False
        self._path = path
        self._at = after  # the last step
        fd = os.open(b".", OPEN_DIR, dir_fd=root)
        for name in path.split(b"/") if path else ():
            try:
                below = _open_dir(name, fd, path)
            finally:
                os.close(fd)
            fd = below
        self.top = self._level(b"", fd)
        self._stack = [self.top]
        for name in after.split(b"/") if after else ():
            self._enter(self._stack[-1], name)

    def close(self) -> None:
        for level in self._stack:
            level.close()
        self._stack.clear()

    def __iter__(self) -> Iterator[Step]:
        stack = self._stack
        while stack:
            level = stack[-1]
            found = self._next(level)
            if found is None:
                self._leave()
                continue
            name, form, told = found
            if form == stat.S_IFDIR:
                below = self._enter(level, name)
                self._at = below.path
                if self._guide is not None and not self._guided:
                    self._ask(self._guide)
                yield level, name, form, below.path, below.fd, None
            else:
                self._at = at = level.path + b"/" + name if level.path else name
                yield level, name, form, at, -1, told

    def _next(self, level: Level) -> Item:
        if self._guided and self._guide is not None:
            try:
                return self._guide.next()
            except GuideLost:
                self._guide = None
        if level.names is None:
            level.names = self._names(level)
        return (*level.names.pop(), None) if level.names else None

    def _ask(self, guide: Guide) -> None:
        """Lets the guide go on from here; should it be lost, folders are read once more."""
        if len(self._stack) < _OPEN_LEVELS and guide.ready():
            self._guided = True
            guide.begin(self._path, self._at)
            for level in self._stack:
                level.names = None

    def _enter(self, level: Level, name: bytes) -> Level:
        at = level.path + b"/" + name if level.path else name
        below = self._level(at, _open_dir(name, level.fd, at))
        self._stack.append(below)
        if len(self._stack) > _OPEN_LEVELS:
            self._shut(self._stack[-_OPEN_LEVELS])
        return below

    def _level(self, path: bytes, fd: int) -> Level:
        """Takes `fd`, which is closed if this fails."""
        level = Level(path, fd, -1, (0, 0), None)
        try:
            level.meta = self._open_meta(fd, path)
        except BaseException:
            level.close()
            raise
        return level

    def _names(self, level: Level) -> list[tuple[bytes, int]]:
        """The names in a folder that come after the last step."""
        last = self._at[len(level.path) :].strip(b"/").split(b"/", 1)[0]
        names = []
        with os.scandir(level.fd) as entries:
            for item in entries:
                name = os.fsencode(item.name)
                if name in RESERVED or name <= last:
                    continue
                if item.is_file(follow_symlinks=False):
                    form = stat.S_IFREG
                elif item.is_dir(follow_symlinks=False):
                    form = stat.S_IFDIR
                else:
                    form = 0
                names.append((name, form))
        names.sort(reverse=True)
        return names

    def _open_meta(self, fd: int, path: bytes) -> int:
        if not self._metadata:
            return -1
        try:
            return open_dir(META_DIR, fd)
        except FileNotFoundError:
            return -1
        except OSError as error:
            raise TreeError(
                f"{shown(path)}: its {META_DIR.decode()} is no directory: {error.strerror}"
            ) from None

    @staticmethod
    def _shut(upper: Level) -> None:
        upper.ident = _ident(upper.fd)
        upper.close()

    def _leave(self) -> None:
        level = self._stack.pop()
        try:
            if self._stack and self._stack[-1].fd < 0:
                upper = self._stack[-1]
                upper.fd = os.open(b"..", OPEN_DIR, dir_fd=level.fd)
                if _ident(upper.fd) != upper.ident:
                    raise TreeError(f"{shown(upper.path)}: the tree changes while it is read")
                upper.meta = self._open_meta(upper.fd, upper.path)
        finally:
            level.close()
