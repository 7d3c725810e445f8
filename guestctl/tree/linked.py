"""A writer that links an artifact, which lies unpacked, into other trees.

The inodes linked to are shared by every tree that has the artifact, and such trees are for
read-only exports alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from guestctl.entry import Entry
from guestctl.tree.folders import Folder
from guestctl.tree.metadata import Pairs, encoded
from guestctl.tree.planting import Bed, Left, Planter, Plot, beds, heavy
from guestctl.tree.shape import FolderShape, Shape, opened
from guestctl.tree.twofold import Rest, plant_twofold
from guestctl.tree.writer import TreeWriter
from guestctl.vmeta import META_DIR, ROOT_FILE, encode_xattrs

__all__ = ["LinkedWriter", "Unlinkable", "why_not_linked"]

_PATH_MAX = 4000
_DEEP = 100  # directories: for each a Planter holds four descriptors, and there are two of them


class Unlinkable(Exception):
    """The artifact cannot be linked; `damaged` where the cache lacks a part of it."""

    def __init__(self, why: str, *, damaged: bool = False) -> None:
        super().__init__(why)
        self.damaged = damaged


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _all_of(bed: Bed) -> Left:
    return [(number, None) for number in range(len(bed))]


class LinkedWriter(TreeWriter):
    """A TreeWriter that can also put a folder of a cached artifact, link by link.

    What stands in the way is dealt with as for a member of an archive.
    """

    # The metadata in the cache of the folder that is being made, and the tree there.
    _lent: tuple[bytes, int] | None = None
    # The folders that were made for the artifact, where that matters.
    _new: set[bytes] | None = None

    def put(
        self,
        shape: Shape,
        source: int,
        *,
        fresh: bool,
        twofold: bool,
        done: Callable[[int], None],
    ) -> None:
        """Puts all of an artifact.

        `fresh`: there is nothing where it goes. `twofold`: in two processes. `done` takes how many
        entries more are there, or will be.

        :raise Unlinkable: something of it is not in the cache, or has too many links.
        """
        plots = None
        if max(path.count(b"/") for path in shape.paths) <= _DEEP:
            plots = self._plots(shape, source, fresh)
        if plots is None:
            for number in range(len(shape.paths)):
                folder = shape.folder(number)
                self._folder_of(folder, source)
                self._leaves(folder, source)
                done(1 + len(folder.leaves))
            return
        done(len(shape.paths) + sum(map(len, map(shape.leaves, range(len(shape.paths))))))
        if twofold:
            for index in heavy(plots):
                self._ready(shape.folder(plots[index].number), source, inner=True)
                plots[index] = plots[index]._replace(new=False)
        todo = beds(plots)
        if not todo:
            return
        try:
            with _unlinkable("a file of it"):
                rest = self._planted(todo, source, twofold and len(todo) > 1)
        except Unlinkable:
            # It will be unpacked over what is there: where no member names a folder, this does.
            for plot in plots:
                if plot.new:
                    self._times.setdefault(self._full(plot.path), plot.mtime)
            raise
        for number, left in rest:
            for index, names in left if left is not None else _all_of(todo[number]):
                plot = todo[number][index]
                folder = shape.folder(plot.number)
                if plot.new:
                    self._folder_of(replace(folder, implied=False), source)
                self._leaves(folder if names is None else replace(folder, leaves=names), source)

    def _plots(self, shape: Shape, source: int, fresh: bool) -> list[Plot] | None:
        """What is to be planted; folders that may stand there already are made, or looked at.

        None: a link of the tree leads to one. Two may then be the same, so that order counts.
        """
        inner = {_parent(path) for path in shape.paths if path}
        plots = []
        new: set[bytes] = set()
        made = self._new = set()
        for number, path in enumerate(shape.paths):
            leaves, holds = shape.leaves(number), path in inner
            if path and _parent(path) in new:
                new.add(path)
                plain = self._file_model and not shape.has_xattrs(number)
                pairs = () if plain else self._pairs(shape.entry(number))
                mtime = shape.mtimes[number]
                plots.append(Plot(path, leaves, number, True, holds, mtime, pairs))
            else:
                here = self._ready(shape.folder(number), source, inner=holds)
                if here.path != self._full(path):
                    return None
                if self._exact and (here.path in made or (fresh and not path)):
                    new.add(path)
                if leaves:
                    plots.append(Plot(path, leaves, number))
        return plots

    def _ready(self, shape: FolderShape, source: int, *, inner: bool) -> Folder:
        """The folder of `shape`, in which a Planter can make what is in it."""
        here = self._folder_of(shape, source)
        if self._file_model and (shape.leaves or inner):
            self._meta(here)
        return here

    def _pairs(self, entry: Entry) -> Sequence[tuple[bytes, bytes]]:
        """The attributes that the host keeps of a new folder."""
        direct, aside = self._split(entry)
        if self._file_model:
            return direct
        return [*encoded(encode_xattrs, entry, self._label), *direct, *aside]

    def _planted(self, todo: Sequence[Bed], source: int, twofold: bool) -> Rest:
        target = self._dir(self._into, Entry(self._into, 0), create=False).fd
        if twofold:
            return plant_twofold(source, target, todo, file_model=self._file_model)
        with Planter(source, target, file_model=self._file_model) as planter:
            rest: Rest = [(number, planter.plant(bed)) for number, bed in enumerate(todo)]
            planter.finish()
        return rest

    def _text(self, meta: int, name: bytes, text: bytes, aside: Pairs, entry: Entry) -> None:
        """Links to a folder's metadata, which saves an inode, where there is one to link to."""
        if self._lent is None or len(self._lent[0]) > _PATH_MAX:
            super()._text(meta, name, text, aside, entry)
            return
        path, source = self._lent
        try:
            os.link(path, name, src_dir_fd=source, dst_dir_fd=meta, follow_symlinks=False)
        except FileExistsError:
            os.unlink(name, dir_fd=meta)
            os.link(path, name, src_dir_fd=source, dst_dir_fd=meta, follow_symlinks=False)

    def _folder_of(self, shape: FolderShape, source: int) -> Folder:
        """Makes the folder of `shape` alone, or has it as it is to be."""
        entry = shape.entry
        parent, slash, name = entry.path.rpartition(b"/")
        if name:
            self._lent = parent + slash + META_DIR + b"/" + name, source
        try:
            with _unlinkable(entry.shown):
                if not shape.implied:
                    self.directory(entry)
                return self._dir(self._full(entry.path), entry)
        finally:
            self._lent = None

    def _mkdir(self, here: Folder, name: bytes) -> int:
        fd = super()._mkdir(here, name)
        if self._new is not None:
            self._new.add(here.path + b"/" + name if here.path else name)
        return fd

    def _leaves(self, shape: FolderShape, source: int) -> None:
        """Links to the leaves of `shape`, whatever stands in their way."""
        if not shape.leaves:
            return
        with _unlinkable(shape.entry.shown):
            here = self._dir(self._full(shape.entry.path), shape.entry)
            meta = self._meta(here) if self._file_model else -1
            for number, fd in enumerate(opened(source, shape, self._file_model)):
                self._link_all(shape, fd, here, meta if number else here.fd)

    def _link_all(self, shape: FolderShape, source: int, here: Folder, target: int) -> None:
        link = os.link
        for name in shape.leaves:
            try:
                link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            except FileExistsError:
                self._replace(shape, name, source, here, target)

    def _replace(
        self, shape: FolderShape, name: bytes, source: int, here: Folder, target: int
    ) -> None:
        """Links in the place of what is there; data comes first and takes the metadata along."""
        if target == here.fd:
            path = shape.entry.path
            self._clear(here, name, Entry(path + b"/" + name if path else name, 0))
        else:
            os.unlink(name, dir_fd=target)
        os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)


@contextlib.contextmanager
def _unlinkable(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise Unlinkable(f"the cache lacks {what}", damaged=True) from error
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        raise Unlinkable("a file of it has as many links as it can have") from error


def why_not_linked(path: bytes, root: int) -> str:
    """Why files like `path` cannot be linked into the tree at `root`; empty where they can."""
    probe = ROOT_FILE + b".probe"
    try:
        os.link(path, probe, dst_dir_fd=root, follow_symlinks=False)
    except OSError as error:
        return error.strerror or str(error)
    os.unlink(probe, dir_fd=root)
    return ""
