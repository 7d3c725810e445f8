"""Unix sockets at paths of any length, which are their user's alone."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["bound_socket", "connected_socket"]

_TIMEOUT = 5.0
_POLL = 0.01


@contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Another name for `path` that fits the 108 bytes of a socket's address."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def bound_socket(path: Path) -> socket.socket:
    """A listening unix socket at `path`, whatever the path's length."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short_path(path) as name:
        made.bind(name)
    os.chmod(path, 0o600)
    made.listen(1)
    return made


def connected_socket(path: Path) -> socket.socket:
    """A unix socket connected to `path`; raises OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(_TIMEOUT)
        deadline = time.monotonic() + _TIMEOUT
        with _short_path(path) as name:
            while not _connected(made, name):
                # QEMU takes who came before us when it has time; a dead one must not keep us.
                if time.monotonic() > deadline:
                    raise TimeoutError(f"nobody has answered at {path} for {_TIMEOUT:g} s")
                time.sleep(_POLL)
    except BaseException:
        made.close()
        raise
    return made


def _connected(made: socket.socket, name: str) -> bool:
    """False: the backlog is full, of which a socket with a time-out is told at once."""
    try:
        made.connect(name)
    except BlockingIOError:
        return False
    return True
