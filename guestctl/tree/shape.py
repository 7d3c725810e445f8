"""The shape of an artifact that lies unpacked: its folders, and the names of all else in them.

The inodes that trees link to are shared by every tree that has the artifact. They are 0400, so that
nobody but root opens them for writing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from guestctl.entry import Entry
from guestctl.tree.reader import TreeReader
from guestctl.tree.state import OPEN_DIR
from guestctl.vmeta import META_DIR

__all__ = ["FolderShape", "Shape", "freeze", "opened", "shape_of"]

_FROZEN = 0o400
_PATH_MAX = 4000


@dataclass(slots=True)
class FolderShape:
    """A folder of an artifact: its attributes, and the names of what is no folder in it.

    `implied`: no member names it, so a folder that is there already keeps its attributes.
    """

    entry: Entry
    implied: bool
    leaves: list[bytes] = field(default_factory=list)


class Shape:
    """All folders of an artifact, parents first, in columns: of most of them little is asked."""

    def __init__(self, document: dict[str, Any]) -> None:
        """`document` is what `document_of` has made."""
        self._facts = document
        self._xattrs: dict[str, dict[str, str]] = document["xattrs"]
        self._implied = set(document["implied"])
        # No path and no name has two slashes in it.
        self.paths = _bytes(document["paths"]).split(b"//")
        self._leaves = _bytes(document["leaves"]).split(b"//")
        self.mtimes: list[int] = document["mtimes"]

    @staticmethod
    def document_of(folders: list[FolderShape]) -> dict[str, Any]:
        """Plain data for JSON; names that are not UTF-8 are escaped."""
        entries = [folder.entry for folder in folders]
        return {
            "paths": _text(b"//".join(entry.path for entry in entries)),
            "leaves": _text(b"//".join(b"/".join(folder.leaves) for folder in folders)),
            "implied": [n for n, folder in enumerate(folders) if folder.implied],
            "modes": [entry.mode for entry in entries],
            "uids": [entry.uid for entry in entries],
            "gids": [entry.gid for entry in entries],
            "mtimes": [entry.mtime for entry in entries],
            "xattrs": {
                str(n): {_text(name): value.hex() for name, value in entry.xattrs.items()}
                for n, entry in enumerate(entries)
                if entry.xattrs
            },
        }

    def leaves(self, number: int) -> list[bytes]:
        names = self._leaves[number]
        return names.split(b"/") if names else []

    def entry(self, number: int) -> Entry:
        facts = self._facts
        found = self._xattrs.get(str(number), {})
        return Entry(
            self.paths[number],
            facts["modes"][number],
            facts["uids"][number],
            facts["gids"][number],
            self.mtimes[number],
            xattrs={_bytes(name): bytes.fromhex(value) for name, value in found.items()},
        )

    def folder(self, number: int) -> FolderShape:
        return FolderShape(self.entry(number), number in self._implied, self.leaves(number))

    def has_xattrs(self, number: int) -> bool:
        return bool(self._xattrs) and str(number) in self._xattrs


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def shape_of(root: int, model: str, implied: set[bytes]) -> list[FolderShape]:
    """The folders of a whole tree, in the order of a walk."""
    found: dict[bytes, FolderShape] = {}
    reader = TreeReader(root, model, warn=lambda _line: None, content=False)
    for entry, _ in reader.walk():
        if stat.S_ISDIR(entry.mode):
            found[entry.path] = FolderShape(entry, entry.path in implied)
        else:
            parent, _, name = entry.path.rpartition(b"/")
            found[parent].leaves.append(name)
    return list(found.values())


def freeze(root: int, folders: Iterable[FolderShape], *, file_model: bool) -> None:
    """Takes the right to write from every inode that will be linked to, metadata included."""
    for folder in folders:
        for fd in opened(root, folder, file_model):
            for name in folder.leaves:
                os.chmod(name, _FROZEN, dir_fd=fd)
        parent, _, name = folder.entry.path.rpartition(b"/")
        if name and file_model:
            fd = _open_below(root, parent + b"/" + META_DIR if parent else META_DIR)
            try:
                os.chmod(name, _FROZEN, dir_fd=fd)
            finally:
                os.close(fd)


def opened(root: int, folder: FolderShape, file_model: bool) -> Iterator[int]:
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
