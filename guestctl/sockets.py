"""Unix sockets at paths of any length, which are their user's alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["bound_socket", "connected_socket"]


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
        # A full backlog would block for ever, so that a dead QEMU must not keep us.
        made.settimeout(5)
        with _short_path(path) as name:
            made.connect(name)
    except BaseException:
        made.close()
        raise
    return made
