"""Joins a line to a listening socket, so that sessions come and go as on any channel.

One client at a time, as QEMU serves them. What the other end says while there is none is dropped.
The other end is always listened to: it does not wait for a client that does not read.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable

from guestctl.line import Line
from guestctl.pipe import Pipe

__all__ = ["Bridge", "bridged"]

_CHUNK = 1 << 16

# Channels of which QEMU waits for whoever is at the socket's other end.
_LINES: dict[str, Callable[[], Pipe]] = {"serial": Line.new, "tcp": Pipe}


def bridged(channel: str, listening: socket.socket) -> tuple[Bridge | None, socket.socket]:
    """What QEMU is given for a channel: `listening` itself, or the far end of a bridge to it."""
    how = _LINES.get(channel)
    if how is None:
        return None, listening
    ours, theirs = socket.socketpair()
    return Bridge(ours.detach(), listening, how()), theirs


class Bridge:
    """Runs in a thread until the line ends or `close`; both descriptors are then closed.

    `how` is what the bytes on the line are: packets, or themselves. `ended` is told, in the thread,
    when the line has ended by itself, and why.
    """

    def __init__(
        self,
        line: int,
        listening: socket.socket,
        how: Pipe,
        *,
        ended: Callable[[str], None] = lambda _why: None,
    ) -> None:
        os.set_blocking(line, False)
        listening.setblocking(False)
        self._device = line
        self._listening = listening
        self._client: socket.socket | None = None
        self._line = how
        self._ended = ended
        self._out = b""
        self._closed = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="guestctl-bridge", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it; a second time does nothing."""
        self._closed = True
        try:
            os.write(self._wake_write, b"x")
        except OSError:
            return
        self._thread.join(5)

    def _serve(self) -> None:
        try:
            while not self._closed:
                self._step()
        except OSError as error:
            # The line is gone: whoever comes is told by the end of the socket.
            self._ended(error.strerror or str(error))
        finally:
            self._drop()
            self._listening.close()
            for handle in (self._device, self._wake_read, self._wake_write):
                os.close(handle)

    def _step(self) -> None:
        now = time.monotonic()
        self._out = self._out or self._line.output(now)
        if self._out:
            self._write()
        poller = select.poll()
        poller.register(self._device, select.POLLIN | (select.POLLOUT if self._out else 0))
        poller.register(self._wake_read, select.POLLIN)
        events = self._wanted()
        peer = self._client or self._listening
        poller.register(peer, events)
        ready = dict(poller.poll(self._patience(now)))
        if ready.get(self._device, 0) & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self._read()
        if self._client is None:
            if ready.get(peer.fileno()):
                self._accept()
        else:
            self._talk(self._client, ready.get(peer.fileno(), 0))

    def _patience(self, now: float) -> float | None:
        """Milliseconds."""
        deadline = None if self._out else self._line.deadline()
        return None if deadline is None else max(0.0, deadline - now) * 1000 + 1

    def _wanted(self) -> int:
        if self._client is None:
            self._line.take(_CHUNK)
            return select.POLLIN
        events = select.POLLIN if self._line.connected and self._line.room() else 0
        return events | (select.POLLOUT if self._line.waiting() else 0)

    def _read(self) -> None:
        try:
            data = os.read(self._device, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            raise OSError("the line has ended")
        try:
            self._line.feed(data, time.monotonic())
        except BufferError:
            # It has been stopped for good, or the agent sends what nobody has given credit for.
            self._drop()

    def _write(self) -> None:
        try:
            self._out = self._out[os.write(self._device, self._out) :]
        except BlockingIOError:
            return

    def _accept(self) -> None:
        try:
            self._client, _ = self._listening.accept()
        except BlockingIOError:
            return
        self._client.setblocking(False)
        self._line.forget()

    def _talk(self, client: socket.socket, ready: int) -> None:
        try:
            if ready & select.POLLOUT:
                self._line.take(client.send(self._line.peek(_CHUNK)))
            if ready & (select.POLLIN | select.POLLHUP | select.POLLERR):
                data = client.recv(max(1, self._line.room()))
                if not data:
                    self._drop()
                self._line.send(data)
        except BlockingIOError:
            return
        except OSError:
            self._drop()

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
            self._line.forget()
