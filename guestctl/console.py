"""The kernel's console of one guest: a log that is kept, and a socket for who wants to type.

The supervisor has the only connection to QEMU's serial line. Readers follow the log, so that any
number of them, and slow ones, cost nothing; writers connect to the socket.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from contextlib import suppress
from io import FileIO
from pathlib import Path

__all__ = ["ConsoleKeeper"]

LIMIT = 1 << 20
_CHUNK = 1 << 16
# What is typed waits here while the guest does not take it; beyond that its writer waits.
_TYPED_LIMIT = 1 << 16


class ConsoleKeeper:
    """A thread of its own from `start` on, until the line ends or `close` is called."""

    def __init__(self, line: socket.socket, log: Path, keyboard: socket.socket) -> None:
        line.setblocking(False)
        keyboard.setblocking(False)
        self._line = line
        self._path = log
        self._keyboard = keyboard
        self._typed = bytearray()
        self._writers: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._serve, name="guestctl-console", daemon=True)

    def start(self) -> None:
        """Begins a log of its own: what another guest of this name said is moved aside, so that its
        last words are not taken for this one's."""
        with suppress(FileNotFoundError):
            os.replace(self._path, self._path.with_suffix(".log.1"))
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Keeps what the line still holds, then lets go of everything; waits up to `timeout` s."""
        try:
            self._line.shutdown(socket.SHUT_RDWR)
        except OSError:
            # QEMU has gone already.
            pass
        self._thread.join(timeout)

    def _serve(self) -> None:
        log = open(self._path, "ab", buffering=0)  # noqa: SIM115
        try:
            self._selector.register(self._line, selectors.EVENT_READ)
            self._selector.register(self._keyboard, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _mask in self._selector.select()}
                if self._line in ready:
                    data = self._received()
                    if data == b"":
                        return
                    if data:
                        log = self._kept(log, data)
                if self._keyboard in ready:
                    self._accept()
                for writer in self._writers & ready:
                    self._take(writer)
                self._type()
        except OSError:
            # The socket was closed, or the disk is full: the guest goes on.
            return
        finally:
            log.close()
            for end in (self._line, self._keyboard, *self._writers):
                end.close()
            self._selector.close()

    def _received(self) -> bytes | None:
        """What came on the line; None: nothing; empty: it has ended."""
        try:
            return self._line.recv(_CHUNK)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def _kept(self, log: FileIO, data: bytes) -> FileIO:
        """Appends to the log, which is moved aside when it is full; returns the one in use."""
        if log.tell() > LIMIT:
            log.close()
            os.replace(self._path, self._path.with_suffix(".log.1"))
            log = open(self._path, "ab", buffering=0)  # noqa: SIM115
        log.write(data)
        return log

    def _accept(self) -> None:
        try:
            writer, _address = self._keyboard.accept()
        except OSError:
            # It has gone again.
            return
        writer.setblocking(False)
        self._writers.add(writer)
        self._selector.register(writer, selectors.EVENT_READ)

    def _take(self, writer: socket.socket) -> None:
        if len(self._typed) >= _TYPED_LIMIT:
            return
        try:
            data = writer.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._typed += data
            return
        self._writers.discard(writer)
        self._selector.unregister(writer)
        writer.close()

    def _type(self) -> None:
        """Passes on what the line takes; while it takes nothing more, nobody is listened to."""
        if self._typed:
            try:
                del self._typed[: self._line.send(self._typed)]
            except BlockingIOError:
                pass
        waiting = selectors.EVENT_WRITE if self._typed else 0
        self._selector.modify(self._line, selectors.EVENT_READ | waiting)
        full = len(self._typed) >= _TYPED_LIMIT
        for writer in self._writers:
            listened = writer in self._selector.get_map()
            if full and listened:
                self._selector.unregister(writer)
            elif not full and not listened:
                self._selector.register(writer, selectors.EVENT_READ)
