"""Folders made anew with links to what is in them, by as few system calls as will do.

They come in the order of a walk, parents first, and nothing is expected to stand where they go.
Whatever is not as expected is left to TreeWriter, which looks before it acts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from guestctl.tree.state import OPEN_DIR
from guestctl.vmeta import META_DIR

__all__ = ["Bed", "Left", "Planter", "Plot", "beds", "heavy"]

_FOLDER_COST = 5  # what making a folder costs, in leaves
_PARTS = 32


class Plot(NamedTuple):
    """A folder, by path and number in the artifact, and names of leaves to be linked into it.

    `new`: it is to be made, with the host's attributes `pairs` and the time `mtime` (ns). `inner`:
    there are folders in it.
    """

    path: bytes
    leaves: list[bytes]
    number: int
    new: bool = False
    inner: bool = False
    mtime: int = 0
    pairs: Sequence[tuple[bytes, bytes]] = ()


# A folder whose parent is there, and all new ones below it.
Bed = list[Plot]
# What is left of a bed: the index of a plot, and names that are taken; None: the whole plot.
Left = list[tuple[int, list[bytes] | None]]


def heavy(plots: Sequence[Plot]) -> list[int]:
    """Which new folders have to be there first, so that what is below can be shared out.

    Those with folders in them, and more than a small part of all that there is to do.
    """
    below = {plot.path: _FOLDER_COST * plot.new + len(plot.leaves) for plot in plots}
    most = sum(below.values()) // _PARTS
    for plot in reversed(plots):
        parent = plot.path.rpartition(b"/")[0]
        if plot.path and parent in below:
            below[parent] += below[plot.path]
    return [
        n for n, plot in enumerate(plots) if plot.new and plot.inner and below[plot.path] > most
    ]


def beds(plots: Sequence[Plot]) -> list[Bed]:
    """What can be made in any order."""
    found: list[Bed] = []
    inside = None
    for plot in plots:
        if plot.new and inside is not None and plot.path.startswith(inside):
            found[-1].append(plot)
        else:
            found.append([plot])
            inside = plot.path + b"/" if plot.new else None
    return found


@dataclass(slots=True)
class _Level:
    """A folder on the way: descriptors of it, and of its metadata's, in the source and the tree."""

    path: bytes
    source: int
    source_meta: int = -1
    target: int = -1
    target_meta: int = -1
    mtime: int | None = None  # to be given to it when all is in it

    def close(self) -> None:
        for fd in (self.source, self.source_meta, self.target, self.target_meta):
            if fd >= 0:
                os.close(fd)


class _OddFolder(Exception):
    """It cannot have its attributes."""


class Planter:
    """Goes through the beds of an artifact; the folders on the way to the last are kept open."""

    def __init__(self, source: int, target: int, *, file_model: bool) -> None:
        """`source`: where the artifact lies; `target`: where it goes; `file_model`: mapped-file."""
        self._file_model = file_model
        self._stack: list[_Level] = []
        try:
            self._open(b"", source, target, b".")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Planter:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        for level in self._stack:
            level.close()
        self._stack.clear()

    def finish(self) -> None:
        """Gives their times to the folders that are still open."""
        while self._stack:
            self._leave()

    def plant(self, bed: Bed) -> Left:
        """Makes and links all that nothing is in the way of.

        :raise OSError: something else is the matter.
        """
        left: Left = []
        for number, plot in enumerate(bed):
            try:
                level = self._made(plot) if plot.new else self._at(plot.path)
            except (FileExistsError, _OddFolder):
                return [*left, *((other, None) for other in range(number, len(bed)))]
            names = plot.leaves
            if not names or level is None:
                continue
            taken = _link_all(names, level.source, level.target)
            if self._file_model:
                if taken:
                    names = [name for name in names if name not in set(taken)]
                taken += _link_all(names, level.source_meta, level.target_meta)
            if taken:
                left.append((number, taken))
        return left

    def _made(self, plot: Plot) -> _Level | None:
        """Makes a folder; None if there is nothing to be put into it."""
        parent, _, name = plot.path.rpartition(b"/")
        above = self._at(parent)
        if self._file_model:
            # First, so that no folder is ever without.
            _link(name, above.source_meta, above.target_meta)
        os.mkdir(name, 0o700, dir_fd=above.target)
        if not (plot.leaves or plot.inner or plot.pairs):
            os.utime(name, ns=(plot.mtime, plot.mtime), dir_fd=above.target, follow_symlinks=False)
            return None
        return self._open(plot.path, above.source, above.target, name, plot)

    def _at(self, path: bytes) -> _Level:
        """A folder that is there."""
        stack = self._stack
        while (top := stack[-1].path) != path:
            if top and not path.startswith(top + b"/"):
                self._leave()
                continue
            name = path[len(top) + 1 if top else 0 :].partition(b"/")[0]
            here = top + b"/" + name if top else name
            self._open(here, stack[-1].source, stack[-1].target, name)
        return stack[-1]

    def _open(
        self, path: bytes, source: int, target: int, name: bytes, made: Plot | None = None
    ) -> _Level:
        level = _Level(path, os.open(name, OPEN_DIR, dir_fd=source))
        self._stack.append(level)
        level.target = os.open(name, OPEN_DIR, dir_fd=target)
        if made is not None:
            level.mtime = made.mtime
            try:
                for key, value in made.pairs:
                    os.setxattr(level.target, key, value)
            except OSError as error:
                raise _OddFolder from error
        if self._file_model and (made is None or made.leaves or made.inner):
            if made is not None:
                os.mkdir(META_DIR, 0o700, dir_fd=level.target)
            level.source_meta = os.open(META_DIR, OPEN_DIR, dir_fd=level.source)
            level.target_meta = os.open(META_DIR, OPEN_DIR, dir_fd=level.target)
        return level

    def _leave(self) -> None:
        level = self._stack.pop()
        try:
            if level.mtime is not None:
                os.utime(level.target, ns=(level.mtime, level.mtime))
        finally:
            level.close()


def _link(name: bytes, source: int, target: int) -> None:
    os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)


def _link_all(names: list[bytes], source: int, target: int) -> list[bytes]:
    """Returns the names that are taken."""
    link = os.link
    taken = []
    for name in names:
        try:
            link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except FileExistsError:
            taken.append(name)
    return taken
