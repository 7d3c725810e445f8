"""Reading a file that grows, and that its writer moves aside when it is full."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

__all__ = ["Tail"]


class Tail:
    """A context manager. `last` limits what is read of what is there at first, in bytes."""

    def __init__(self, path: Path, *, last: int | None = None) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._open()
        if self._file is not None and last is not None:
            end = self._file.seek(0, os.SEEK_END)
            self._file.seek(max(0, end - last))

    def __enter__(self) -> Tail:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _value: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._close()

    def read(self) -> bytes:
        """What has come since the last time; nothing where nothing has, or the file is gone."""
        while True:
            if self._file is None and not self._open():
                return b""
            assert self._file is not None
            data = self._file.read()
            if data or not self._replaced():
                return data
            # What was written between the read and the move is still to be had.
            data = self._file.read()
            self._close()
            if data:
                return data

    def _open(self) -> bool:
        try:
            self._file = open(self._path, "rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            return False
        return True

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _replaced(self) -> bool:
        """Whether another file, or none, has the name now."""
        assert self._file is not None
        try:
            return self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return True
