"""A live session with one guest's agent: a link, the state machine, and who waits for an answer.

Any thread may call in. One lock guards the session. When the connection breaks, or the agent falls
silent for `heartbeat` seconds, every waiter gets GuestLost.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

from guestctl import events
from guestctl.errors import AgentBroke, GuestHung, GuestLost
from guestctl.link import Link
from guestctl.patience import Patience, never_starved
from guestctl.session import Session
from guestctl.wire import Op, Tag

__all__ = ["Conversation", "Reactions"]

Reactions = dict[type[events.Event], Callable[[Any, Any], None]]

_LOG_LINES = 100


class Conversation:
    """Created by `connect`. Close it to end the session; jobs that run then become orphans."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        orphan: float,
        heartbeat: float,
        hangs_up: bool,
        starved: Callable[[], float],
    ) -> None:
        silence = 0 if hangs_up else int(2 * heartbeat)
        self._session = Session(os.urandom(16), int(orphan * 1000), silence)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._replies: dict[int, events.Replied] = {}
        self._pongs: dict[int, bool] = {}
        self._lost: GuestLost | None = None
        self._starved = starved
        self._quick = hangs_up
        self.welcome: events.Welcomed | None = None
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self._link = Link(
            connection,
            self._lock,
            heartbeat=Patience(heartbeat, starved=starved),
            received=self._received,
            broken=self._break,
            quiet=lambda: self._link.send(self._session.ping(0)),
        )

    @classmethod
    def connect(
        cls,
        connection: socket.socket,
        *,
        timeout: float,
        orphan: float = 60.0,
        heartbeat: float = 60.0,
        hangs_up: bool = True,
        orderly: bool = False,
        starved: Callable[[], float] = never_starved,
    ) -> Self:
        """Begins a session over `connection`, which it takes over.

        `hangs_up` says that the channel tells the agent of our end; where it does not, the agent
        takes us for gone after two heartbeats of silence. `orderly` says that this is the first
        session, or that `settle` ended the last one: that is quicker. Jobs outlive the session by
        `orphan` seconds. All waits are in seconds that the guest was not `starved` of its
        processor. Raises GuestLost when no welcome comes within `timeout` seconds, ProtocolError
        when the agent is of another version.
        """
        given = {"orphan": orphan, "heartbeat": heartbeat}
        made = cls(connection, **given, hangs_up=hangs_up, starved=starved)
        try:
            with made._lock:
                made._link.send(made._session.hello(orderly))
            made._link.start()
            made._await(lambda: made.welcome is not None, timeout, "the agent did not answer")
        except BaseException:
            made.close()
            raise
        return made

    def heed(self, seconds: float) -> None:
        """From now on silence of so many seconds is the end, where `heartbeat` is not shorter.

        Not on a line that may be slow: there an answer waits behind all that was sent before it.
        """
        if self._quick:
            self._link.hasten(Patience(seconds, starved=self._starved))

    @property
    def lost(self) -> str:
        """Why the session broke, empty while it lives."""
        return str(self._lost or "")

    @property
    def hostile(self) -> bool:
        """Whether it broke because the agent broke the protocol."""
        return isinstance(self._lost, AgentBroke)

    def close(self) -> None:
        """Ends the session; whoever waits gets GuestLost. A second time does nothing."""
        self._link.close()
        self._break(self._lost or GuestLost("the session was closed"))

    # --- requests ---------------------------------------------------------------------------

    def request(
        self, op: Op, records: Iterable[tuple[Tag, bytes]] = (), *, timeout: float
    ) -> events.Replied:
        """Asks the agent for `op` and waits; raises RequestFailed or GuestLost."""
        with self._lock:
            self._check()
            id_, data = self._session.request(op, records)
            self._link.send(data)
            self._await(
                lambda: id_ in self._replies, timeout, f"no reply to {op.name} in {timeout:g} s"
            )
            reply = self._replies.pop(id_)
        return reply.checked(op.name.lower())

    def ping(self, timeout: float, *, last: bool = False) -> float:
        """The seconds that an answer took; raises GuestLost. Nothing is sent after the `last`."""
        begin = time.monotonic()
        token = int.from_bytes(os.urandom(7), "little")
        with self._lock:
            self._check()
            self._pongs[token] = False
            self._link.send(self._session.ping(token))
            if last:
                self._link.mute()
            try:
                self._await(lambda: self._pongs[token], timeout, f"no pong in {timeout:g} s")
            except GuestHung as error:
                # How long a caller waits for it says nothing of the guest.
                raise GuestLost(str(error)) from None
            finally:
                del self._pongs[token]
        return time.monotonic() - begin

    def settle(self, timeout: float) -> None:
        """Says no more, and waits until the agent has read all that was said; raises GuestLost.

        A connection that is closed may take with it what it was given last. The agent would keep
        the ends that it does not know to be taken, and the next session find half a frame.
        """
        self.ping(timeout, last=True)

    def _tell(self, make: Callable[[], bytes]) -> None:
        with self._lock:
            if not self._lost:
                self._link.send(make())

    # --- the connection ---------------------------------------------------------------------

    def _check(self) -> None:
        if self._lost:
            # One of its own for each that waits.
            raise type(self._lost)(str(self._lost))

    def _await(self, done: Callable[[], bool], timeout: float, message: str) -> None:
        """Waits on the session's condition until `done`."""
        patience = Patience(timeout, starved=self._starved)
        with self._lock:
            if not patience.awaits(done, self._changed, self._check):
                raise GuestHung(message)

    def _received(self, data: bytes) -> None:
        for event in self._session.feed(data):
            self._reactions[type(event)](self, event)

    def _break(self, reason: GuestLost) -> None:
        with self._lock:
            self._lost = reason
            self._changed.notify_all()

    # --- what the agent answers ---------------------------------------------------------------

    def _welcomed(self, event: events.Welcomed) -> None:
        self.welcome = event
        self._changed.notify_all()

    def _replied(self, event: events.Replied) -> None:
        self._replies[event.request] = event
        self._changed.notify_all()

    def _ponged(self, event: events.Ponged) -> None:
        if event.token in self._pongs:
            self._pongs[event.token] = True
            self._changed.notify_all()

    def _logged(self, event: events.Logged) -> None:
        self.log.append(event.text)

    # What is done about each event, with the lock held.
    _reactions: ClassVar[Reactions] = {
        events.Welcomed: _welcomed,
        events.Replied: _replied,
        events.Ponged: _ponged,
        events.Logged: _logged,
    }
