"""The files that a guest's process sees, read from the host."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol

__all__ = ["FolderFiles", "GuestFiles"]


class GuestFiles(Protocol):
    """A guest's file system, by absolute paths of the guest's process. Links are the guest's."""

    def open(self, path: bytes) -> BinaryIO:
        """Opens a regular file through links; raises OSError."""

    def realpath(self, path: bytes) -> bytes:
        """The path without links; raises OSError where it leads nowhere."""


class FolderFiles:
    """A folder with real links as the root of a guest, such as an image's."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, path: bytes) -> BinaryIO:
        raise NotImplementedError

    def realpath(self, path: bytes) -> bytes:
        raise NotImplementedError
