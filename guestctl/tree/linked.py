"""Trees made of hard links: an artifact's shape, and a writer that links it into other trees.

The inodes linked to are shared by every tree that has the artifact. They are 0400, so that nobody
but root opens them for writing, and such trees are for read-only exports alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from guestctl.entry import Entry
from guestctl.tree.folders import Folder
from guestctl.tree.metadata import Pairs
from guestctl.tree.reader import TreeReader
from guestctl.tree.state import OPEN_DIR
from guestctl.tree.twofold import Job, link_twofold
from guestctl.tree.writer import TreeWriter
from guestctl.vmeta import META_DIR, ROOT_FILE

__all__ = ["FolderShape", "LinkedWriter", "Unlinkable", "freeze", "shape_of", "why_not_linked"]

_FROZEN = 0o400
_PATH_MAX = 4000


class Unlinkable(Exception):
    """The artifact cannot be linked; `damaged` where the cache lacks a part of it."""

    def __init__(self, why: str, *, damaged: bool = False) -> None:
        super().__init__(why)
        self.damaged = damaged


@dataclass(slots=True)
class FolderShape:
    """A folder of an artifact: its attributes, and the names of what is no folder in it.

    `implied`: no member names it, so a folder that is there already keeps its attributes.
    """

    entry: Entry
    implied: bool
    leaves: list[bytes] = field(default_factory=list)

    def as_row(self) -> list[Any]:
        """Plain data for JSON; names that are not UTF-8 are escaped."""
        entry = self.entry
        return [
            _text(entry.path),
            self.implied,
            [entry.mode, entry.uid, entry.gid, entry.mtime],
            {_text(name): value.hex() for name, value in entry.xattrs.items()},
            [_text(name) for name in self.leaves],
        ]

    @classmethod
    def of_row(cls, row: list[Any]) -> FolderShape:
        path, implied, (mode, uid, gid, mtime), xattrs, leaves = row
        held = {_bytes(name): bytes.fromhex(value) for name, value in xattrs.items()}
        entry = Entry(_bytes(path), mode, uid, gid, mtime, xattrs=held)
        return cls(entry, implied, [_bytes(name) for name in leaves])


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def shape_of(root: int, model: str, implied: set[bytes]) -> list[FolderShape]:
    """The folders of a whole tree, parents first."""
    found: dict[bytes, FolderShape] = {}
    reader = TreeReader(root, model, warn=lambda _line: None, content=False)
    for entry, _ in reader.walk():
        if stat.S_ISDIR(entry.mode):
            found[entry.path] = FolderShape(entry, entry.path in implied)
        else:
            parent, _, name = entry.path.rpartition(b"/")
            found[parent].leaves.append(name)
    return list(found.values())


def freeze(root: int, folders: list[FolderShape], *, file_model: bool) -> None:
    """Takes the right to write from every inode that will be linked to, metadata included."""
    for folder in folders:
        for fd in _opened(root, folder, file_model):
            for name in folder.leaves:
                os.chmod(name, _FROZEN, dir_fd=fd)
        parent, _, name = folder.entry.path.rpartition(b"/")
        if name and file_model:
            fd = _open_below(root, parent + b"/" + META_DIR if parent else META_DIR)
            try:
                os.chmod(name, _FROZEN, dir_fd=fd)
            finally:
                os.close(fd)


def _opened(root: int, folder: FolderShape, file_model: bool) -> Iterator[int]:
    """The descriptors that hold a folder's leaves, and then their metadata; closed after use."""
    if not folder.leaves:
        return
    path = folder.entry.path
    for place in (path, path + b"/" + META_DIR if path else META_DIR)[: 2 if file_model else 1]:
        fd = _open_below(root, place)
        try:
            yield fd
        finally:
            os.close(fd)


def _open_below(root: int, path: bytes) -> int:
    """Opens a folder of a tree that we made, in which no name is a link."""
    if len(path) <= _PATH_MAX:
        return os.open(path or b".", OPEN_DIR, dir_fd=root)
    fd = os.dup(root)
    for name in path.split(b"/"):
        try:
            below = os.open(name, OPEN_DIR, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


class LinkedWriter(TreeWriter):
    """A TreeWriter that can also put a folder of a cached artifact, link by link.

    What stands in the way is dealt with as for a member of an archive.
    """

    # The metadata in the cache of the folder that is being made, and the tree there.
    _lent: tuple[bytes, int] | None = None
    # The leaves that wait for `link_gathered`; None: they are linked with their folder.
    _gathered: list[Job] | None = None

    def gather(self) -> bool:
        """Whether links to leaves will now wait, to be made in two processes.

        Not where folders may be one and the same by a link: the order of entries counts there.
        """
        if not self._follow:
            self._gathered = []
        return not self._follow

    def link_gathered(self, source: int) -> None:
        """:raise Unlinkable: as for `folder`."""
        jobs, self._gathered = self._gathered or [], None
        with _unlinkable("a file of it"):
            left = link_twofold(source, self._root.fd, jobs, file_model=self._file_model)
            for old, new, names in left:
                here = self._dir(new, Entry(new, 0), create=False)
                self._leaves(FolderShape(Entry(old, 0), True, names), source, here)

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

    def folder(self, shape: FolderShape, source: int) -> None:
        """Makes the folder of `shape`, and links to its leaves in the tree at `source`.

        :raise Unlinkable: something of it is not in the cache, or has too many links.
        """
        try:
            with _unlinkable(shape.entry.shown):
                self._folder(shape, source)
        finally:
            self._lent = None

    def _folder(self, shape: FolderShape, source: int) -> None:
        entry = shape.entry
        parent, slash, name = entry.path.rpartition(b"/")
        if name:
            self._lent = parent + slash + META_DIR + b"/" + name, source
        if not shape.implied:
            self.directory(entry)
        here = self._dir(self._full(entry.path), entry)
        if not shape.leaves:
            return
        if self._gathered is None:
            self._leaves(shape, source, here)
            return
        if self._file_model:
            self._meta(here)
        self._gathered.append((entry.path, here.path, shape.leaves))

    def _leaves(self, shape: FolderShape, source: int, here: Folder) -> None:
        meta = self._meta(here) if self._file_model else -1
        for number, fd in enumerate(_opened(source, shape, self._file_model)):
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
