"""One connection, read by a thread: bytes go out from any thread, come in by a callback, and an end
or a long silence is told once. It knows nothing of what the bytes mean."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from guestctl.errors import AgentBroke, GuestHung, GuestLost, ProtocolError
from guestctl.patience import Patience

__all__ = ["Link"]

_CHUNK = 1 << 18
# What may wait for a peer that does not read. Each piece counts some bytes more, as it takes them.
_WAITING = 64 << 20
_PIECE = 256


class Link:
    """`received`, `broken` and `quiet` are called by the thread, with `lock` held.

    `broken` gets the reason, as an error for whoever waits, and comes once, unless the link was
    closed; `quiet` comes after half of `heartbeat`'s seconds without a byte, so that the peer can
    be asked for a sign of life.
    """

    def __init__(
        self,
        connection: socket.socket,
        lock: threading.RLock,
        *,
        heartbeat: Patience,
        received: Callable[[bytes], None],
        broken: Callable[[GuestLost], None],
        quiet: Callable[[], None],
    ) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._lock = lock
        self._heartbeat = heartbeat
        self._received = received
        self._broken = broken
        self._quiet = quiet
        self._out: deque[memoryview] = deque()
        self._waiting = 0
        self._closed = self._muted = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="guestctl-link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closed

    def send(self, data: bytes) -> None:
        """Sends what the socket takes now and leaves the rest to the thread; needs the lock."""
        if self._closed or self._muted:
            return
        view = memoryview(data)
        if not self._out:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                pass
            except OSError:
                # The thread meets the same fault and tells everybody.
                return
        if view:
            self._out.append(view)
            self._waiting += len(view) + _PIECE
            self._wake()

    def mute(self) -> None:
        """What is sent from now on goes nowhere; needs the lock."""
        self._muted = True

    def hasten(self, heartbeat: Patience) -> None:
        """Silence counts as an end after so long from now on, unless it did before that."""
        with self._lock:
            now, then = self._heartbeat.seconds, heartbeat.seconds
            if self._closed or now is None or then is None or then >= now:
                return
            self._heartbeat = heartbeat
            self._wake()

    def close(self) -> None:
        """Ends the connection; a second time does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(5)
        self._socket.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            # It has been woken often enough.
            pass

    def _serve(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._socket, selectors.EVENT_READ)
                selector.register(self._wake_read, selectors.EVENT_READ)
                self._pump(selector)
        except ProtocolError as error:
            self._tell(AgentBroke(f"the agent broke the protocol: {error}"))
        except GuestHung as error:
            self._tell(error)
        except OSError as error:
            self._tell(GuestLost(f"the connection to the guest broke: {error.strerror or error}"))
        except BaseException as error:
            # A fault of ours: nobody may be left waiting for a thread that is gone.
            self._tell(GuestLost(f"the connection to the guest was given up: {error!r}"))
            raise

    def _tell(self, reason: GuestLost) -> None:
        with self._lock:
            if not self._closed:
                self._broken(reason)

    def _pump(self, selector: selectors.BaseSelector) -> None:
        heard = asked = turned = time.monotonic()
        while True:
            interval = self._heartbeat.seconds
            assert interval is not None
            ready = {key.fd for key, _mask in selector.select(interval / 4)}
            now = time.monotonic()
            # We were stopped ourselves, or the host was: that tells nothing of the guest.
            stopped = now - turned > interval / 2
            turned = now
            if stopped:
                self._heartbeat.restart()
            if self._waiting > _WAITING:
                raise GuestHung("the guest does not read what it is sent")
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._closed:
                return
            if self._socket.fileno() in ready and self._receive():
                heard = now
                self._heartbeat.restart()
            self._flush(selector)
            if self._heartbeat.over() and time.monotonic() - now < interval / 2:
                raise GuestHung(f"nothing heard of the guest for {now - heard:.3g} s")
            if stopped or now - max(heard, asked) > interval / 2:
                asked = now
                with self._lock:
                    self._quiet()

    def _receive(self) -> bool:
        """Reads once; says whether anything came."""
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return False
        if not data:
            raise OSError("end of file")
        with self._lock:
            self._received(data)
        return True

    def _flush(self, selector: selectors.BaseSelector) -> None:
        with self._lock:
            while self._out:
                try:
                    sent = self._socket.send(self._out[0])
                except BlockingIOError:
                    break
                rest = self._out.popleft()[sent:]
                self._waiting -= sent
                if rest:
                    self._out.appendleft(rest)
                else:
                    self._waiting -= _PIECE
            waiting = selectors.EVENT_WRITE if self._out else 0
            selector.modify(self._socket, selectors.EVENT_READ | waiting)
