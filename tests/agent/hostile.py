"""An agent that means harm: it greets as it should, then says whatever a test has it say."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from tests.agent import client as wire
from tests.agent.client import frame

__all__ = ["Hostile"]

_HEAD = 12

Script = Callable[[socket.socket], None]


class Hostile:
    """Serves one session on `connection` in a thread.

    `script` runs when the host has started its first job, or with `at_once` after the greeting.
    What the host sends meanwhile is read and dropped, unless `deaf`.
    """

    def __init__(
        self,
        connection: socket.socket,
        script: Script,
        *,
        at_once: bool = False,
        deaf: bool = False,
        jobs: bytes = b"",
    ) -> None:
        self._at_once = at_once
        self._connection = connection
        self._script = script
        self._deaf = deaf
        self._jobs = jobs
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        # The host may close at any moment: that is what is wanted of it.
        with self._connection, suppress(OSError):
            self._greet()
            if not self._at_once:
                self._await_job()
            if not self._deaf:
                threading.Thread(target=self._drop, daemon=True).start()
            self._script(self._connection)

    def _greet(self) -> None:
        heard = b""
        size = 13 + 24
        while len(heard) < size:
            data = self._connection.recv(65536)
            if not data:
                raise OSError("the host has left")
            # With filler before it, or without.
            heard = (heard + data).lstrip(b"\0")
        nonce = heard[size - 17 : size - 1]
        payload = nonce + struct.pack("<HH", heard[12], 0) + self._jobs
        self._connection.sendall(frame(wire.WELCOME, 0, payload))

    def _await_job(self) -> None:
        """Until the host starts a command; grants what it asks for meanwhile."""
        heard = b""
        while True:
            data = self._connection.recv(65536)
            if not data:
                raise OSError("the host has left")
            heard += data
            while len(heard) >= _HEAD:
                number, size = struct.unpack_from("<II", heard, 4)
                if len(heard) < _HEAD + size + 1:
                    break
                if heard[0] == wire.EXEC:
                    return
                if heard[0] == wire.REQUEST:
                    self._connection.sendall(frame(wire.REPLY, number, bytes(4)))
                heard = heard[_HEAD + size + 1 :]

    def _drop(self) -> None:
        with suppress(OSError):
            while self._connection.recv(65536):
                pass
