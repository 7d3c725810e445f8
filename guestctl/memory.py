"""A saved guest's memory: in the cache as a sparse file, for clones as a sealed one without a name.

A QEMU opens what it maps for writing. One that a guest has broken must not be able to change
what other guests start from, so what it gets is sealed before its guest runs: nobody can write to
it, or resize it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["fill", "is_sealed", "unfilled", "write_sparse"]

_GRAIN = 4096
_CHUNK = 1 << 20
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def is_sealed(memory: int) -> bool:
    """Whether nobody can change what is behind a descriptor any more."""
    try:
        return fcntl.fcntl(memory, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        return False  # no file that knows of seals


def write_sparse(memory: int, path: Path) -> None:
    """Writes what is not zero of a file to a new one of its size, which nobody may write to."""
    zero = bytes(_GRAIN)
    with open(path, "xb", buffering=0) as file:
        file.truncate(os.fstat(memory).st_size)
        for begin, end in _data(memory):
            for at in range(begin, end, _CHUNK):
                chunk = os.pread(memory, min(_CHUNK, end - at), at)
                for page in range(0, len(chunk), _GRAIN):
                    data = chunk[page : page + _GRAIN]
                    if data != zero:
                        os.pwrite(file.fileno(), data, at + page)
    os.chmod(path, 0o400)


def unfilled(source: int) -> int:
    """A descriptor of a file of the size of `source`, for `fill`. Raises OSError."""
    memory = os.memfd_create("guestctl-clone", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, os.fstat(source).st_size)
    except BaseException:
        os.close(memory)
        raise
    return memory


def fill(memory: int, source: int) -> None:
    """Copies what a sparse file has, and seals the copy. Raises OSError."""
    for at, end in _data(source):
        os.lseek(memory, at, os.SEEK_SET)
        left = end - at
        while left:
            sent = os.sendfile(memory, source, end - left, left)
            if not sent:
                raise OSError(errno.EIO, "it was cut short")
            left -= sent
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)


def _data(handle: int) -> Iterator[tuple[int, int]]:
    """Where a sparse file has data, from and to."""
    at, size = 0, os.fstat(handle).st_size
    while at < size:
        try:
            begin = os.lseek(handle, at, os.SEEK_DATA)
        except OSError:
            return  # nothing but a hole
        at = os.lseek(handle, begin, os.SEEK_HOLE)
        yield begin, at
