"""A second process that shares long work: the interpreter's lock is not between the two.

It runs one function of this package in a fresh interpreter (a fork would copy the locks of other
threads), talks over a socket of whole packets, and ends when its parent does.
"""

from __future__ import annotations

import marshal
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["PACKET_MAX", "Companion", "receive", "start_companion"]

PACKET_MAX = 1 << 17
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from importlib import import_module
getattr(import_module(sys.argv[2]), sys.argv[3])(*map(int, sys.argv[4:]))
"""


class Companion:
    """The parent's side. `socket` carries packets; the first from there says that it is ready."""

    def __init__(self, process: subprocess.Popen[bytes], ours: socket.socket) -> None:
        self._process = process
        self.socket = ours
        self._ready = False

    def ready(self) -> bool:
        """Whether it takes work by now; starting takes some hundredths of a second."""
        if not self._ready:
            try:
                self._ready = bool(self.socket.recv(16, socket.MSG_DONTWAIT))
            except OSError:
                return False
        return self._ready

    def close(self) -> None:
        """Ends it at once, whatever it does."""
        self.socket.close()
        self._process.kill()
        self._process.wait()


def start_companion(
    module: str, function: str, fds: Sequence[int], numbers: Sequence[int] = ()
) -> Companion | None:
    """Starts `function(socket, parent, *fds, *numbers)` of `module`; None if that cannot be.

    The descriptors are inherited, and locks with them.
    """
    if not sys.executable:
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    arguments = [theirs.fileno(), os.getpid(), *fds, *numbers]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, package, module, function]
            + [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), *fds],
            process_group=0,  # Ctrl-C is for the parent, which then ends this one
        )
    except OSError:
        ours.close()
        return None
    finally:
        theirs.close()
    return Companion(process, ours)


def receive(channel: socket.socket, room: int = 0) -> tuple[Any, list[int]]:
    """Returns the next packet, with up to `room` descriptors; None when the other side is gone."""
    data, fds, _, _ = socket.recv_fds(channel, PACKET_MAX, room)
    return marshal.loads(data) if data else None, fds
