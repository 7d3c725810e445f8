"""Services of the host that processes in a guest may call by name, each call a stream of its own.

A call becomes a connected socket, so that a service may be a function, or a program that takes a
socket as its standard input and output, as those of inetd do.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

from guestctl import events
from guestctl.agent import Agent, Job
from guestctl.errors import GuestLost

__all__ = ["Handler", "offer", "serve"]

# Runs in a thread of its own and closes the socket when it is done.
Handler = Callable[[socket.socket], None]

_CHUNK = 1 << 16
_log = logging.getLogger(__name__)


def offer(agent: Agent, service: bytes, handler: Handler) -> None:
    """Offers `handler` under a name; each call of the guest runs it with a socket."""
    agent.offer(service, lambda stream: serve(agent, stream, handler))


def serve(agent: Agent, stream: Job, handler: Handler) -> None:
    """Joins a stream that the guest has opened with a socket for `handler`; returns at once."""
    ours, theirs = socket.socketpair()
    for work, args in (
        (_handle, (handler, theirs)),
        (_to_guest, (agent, stream, ours)),
        (_from_guest, (agent, stream, ours)),
    ):
        threading.Thread(target=work, args=args, name="guestctl-service", daemon=True).start()


def _handle(handler: Handler, connection: socket.socket) -> None:
    with connection:
        try:
            handler(connection)
        except Exception:
            # One call's failure is that caller's end of file, and nobody else's business.
            _log.exception("a service failed")


def _to_guest(agent: Agent, stream: Job, ours: socket.socket) -> None:
    try:
        while data := ours.recv(_CHUNK):
            if not agent.write(stream, data):
                break
        agent.end_stdin(stream)
    except (GuestLost, OSError):
        return


def _from_guest(agent: Agent, stream: Job, ours: socket.socket) -> None:
    """Until the guest's end closes; a reset or a lost guest ends both directions."""
    try:
        while True:
            match agent.take(stream, None):
                case events.Output(data=data):
                    try:
                        ours.sendall(data)
                    except OSError:
                        # The service does not read any more; the guest may go on talking.
                        pass
                    agent.consumed(stream, 0, len(data))
                case events.Ended():
                    ours.shutdown(socket.SHUT_WR)
                    return
                case events.StreamReset():
                    ours.shutdown(socket.SHUT_RDWR)
                    return
    except (GuestLost, OSError):
        try:
            ours.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
