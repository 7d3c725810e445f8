"""A live session with one guest's agent: a link, the state machine, and who waits for what.

Any thread may call in. One lock guards the session; each job has a condition on that lock, so a
caller waits for its own job only. When the connection breaks, or the agent falls silent for
`heartbeat` seconds, every waiter gets GuestLost.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from guestctl import events
from guestctl.errors import AgentBroke, GuestHung, GuestLost
from guestctl.job import Job
from guestctl.link import Link
from guestctl.patience import Patience, never_starved
from guestctl.session import SERVICE_BIT, Session
from guestctl.spec import Command
from guestctl.wire import Op, Tag

__all__ = ["Agent", "Job"]

_LOG_LINES = 100


class Agent:
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
        self._jobs: dict[int, Job] = {}
        self._replies: dict[int, events.Replied] = {}
        self._pongs: dict[int, bool] = {}
        self._services: dict[bytes, Callable[[Job], None]] = {}
        self._lost: GuestLost | None = None
        self._unsettled = False
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
        starved: Callable[[], float] = never_starved,
    ) -> Agent:
        """Begins a session over `connection`, which it takes over.

        `hangs_up` says that the channel tells the agent of our end; where it does not, the agent
        takes us for gone after two heartbeats of silence. Jobs outlive the session by `orphan`
        seconds. All waits are in seconds that the guest was not `starved` of its processor. Raises
        GuestLost when no welcome comes within `timeout` seconds, ProtocolError when the agent is of
        another version.
        """
        given = {"orphan": orphan, "heartbeat": heartbeat}
        agent = cls(connection, **given, hangs_up=hangs_up, starved=starved)
        try:
            with agent._lock:
                agent._link.send(agent._session.hello())
            agent._link.start()
            agent._await(lambda: agent.welcome is not None, timeout, "the agent did not answer")
        except BaseException:
            agent.close()
            raise
        return agent

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

    def ping(self, timeout: float) -> float:
        """The seconds that an answer took; raises GuestLost."""
        begin = time.monotonic()
        token = int.from_bytes(os.urandom(7), "little")
        with self._lock:
            self._check()
            self._pongs[token] = False
            self._link.send(self._session.ping(token))
            try:
                self._await(lambda: self._pongs[token], timeout, f"no pong in {timeout:g} s")
            except GuestHung as error:
                # How long a caller waits for it says nothing of the guest.
                raise GuestLost(str(error)) from None
            finally:
                del self._pongs[token]
        return time.monotonic() - begin

    def offer(self, service: bytes, opened: Callable[[Job], None]) -> None:
        """Lets the guest open streams to `service`; `opened` is told of each, and must not wait."""
        with self._lock:
            self._services[service] = opened

    # --- jobs -------------------------------------------------------------------------------

    def start(self, command: Command, announce: Callable[[int], None] | None = None) -> Job:
        """Starts a command. What becomes of it comes through `take`.

        `announce` is told its id before the agent is.
        """
        with self._lock:
            self._check()
            id_, data = self._session.start(command)
            job = self._jobs[id_] = Job(id_, self._lock)
            if announce is not None:
                announce(id_)
            self._link.send(data)
        return job

    def attach(self, id_: int) -> Job:
        """Takes over a job that an earlier session has left; `take` says what becomes of it."""
        with self._lock:
            self._check()
            job = self._jobs[id_] = Job(id_, self._lock)
            self._link.send(self._session.attach(id_))
        return job

    def forget_all(self) -> None:
        """Has the agent kill and forget what is left of this session's jobs."""
        with self._lock:
            for id_ in [id_ for id_ in self._jobs if id_ < SERVICE_BIT]:
                self._let_go(id_)

    def settle(self, timeout: float) -> None:
        """Waits until the agent knows that all ends were taken; raises GuestLost.

        A connection that is closed may take with it what it was given last, and what the agent was
        not told of it keeps for whoever might attach.
        """
        if self._unsettled:
            self.ping(timeout)
            self._unsettled = False

    def take(self, job: Job, timeout: float | None) -> events.Event | None:
        """The next event of `job`, or None after `timeout` seconds; raises GuestLost.

        The agent keeps the job's end until it has been taken here.
        """
        with self._lock:
            event = job.next(timeout, self._check)
            if isinstance(event, (events.Exited, events.NotStarted)):
                self._let_go(job.id)
            return event

    def write(self, job: Job, data: bytes, *, timeout: float | None = None) -> bool:
        """Sends stdin, waiting for room. False: the command does not read any more."""
        patience = Patience(timeout)
        view = memoryview(data)
        with self._lock:
            while view:
                self._check()
                if job.over:
                    return False
                room = self._session.room(job.id)
                self._link.send(self._session.send(job.id, bytes(view[:room])))
                view = view[room:]
                if view and not patience.awaits(
                    lambda: job.over or self._session.room(job.id), job.changed, self._check
                ):
                    raise TimeoutError("the command does not take its stdin")
        return True

    def end_stdin(self, job: Job) -> None:
        """Ends what is sent to a command, or to a service's caller."""
        with self._lock:
            self._tell(lambda: self._session.send_eof(job.id))
            self._forget_ended(job.id)

    def consumed(self, job: Job, channel: int, count: int) -> None:
        """Gives the agent credit for output that has been taken."""
        self._tell(lambda: self._session.consumed(job.id, channel, count))

    def signal(self, job: Job, number: int) -> None:
        """Sends a signal to the command's process group."""
        self._tell(lambda: self._session.signal(job.id, number))

    def resize(self, job: Job, rows: int, columns: int) -> None:
        """Sets the size of a job's terminal."""
        self._tell(lambda: self._session.window(job.id, rows, columns))

    def kill(self, job: Job) -> None:
        """Kills all that the command has started."""
        self._tell(lambda: self._session.kill(job.id))

    def _let_go(self, id_: int) -> None:
        self._unsettled = True
        self._tell(lambda: self._session.forget(id_))

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
            _REACTIONS[type(event)](self, event)

    def _break(self, reason: GuestLost) -> None:
        with self._lock:
            self._lost = reason
            self._changed.notify_all()
            for job in self._jobs.values():
                job.changed.notify_all()

    # --- reactions to what the agent says; all hold the lock ---------------------------------

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

    def _credited(self, event: events.Credited) -> None:
        job = self._jobs.get(event.stream)
        if job is not None:
            job.changed.notify_all()

    def _of_job(self, event: events.Started) -> None:
        self._queue(event.job, event)

    def _of_stream(self, event: events.Output | events.Ended) -> None:
        self._queue(event.stream, event)
        # The session may know of the end already while data that came with it is handed on.
        if isinstance(event, events.Ended):
            self._forget_ended(event.stream)

    def _last_of_job(self, event: events.Exited | events.NotStarted) -> None:
        self._queue(event.job, event)
        self._forget(event.job)

    def _open(self, event: events.Opened) -> None:
        """Accepts a stream toward a service that is offered; refuses any other."""
        opened = self._services.get(event.service)
        if opened is None:
            text = f"no service {event.service!r}"
            self._link.send(self._session.refuse(event.stream, errno.ECONNREFUSED, text))
            return
        stream = self._jobs[event.stream] = Job(event.stream, self._lock, event.caller)
        self._link.send(self._session.accept(event.stream))
        opened(stream)

    def _forget_ended(self, id_: int) -> None:
        """A service stream has no EXIT to wait for: it is over when both ends have closed."""
        if id_ >= SERVICE_BIT and not self._session.knows(id_):
            self._forget(id_)

    def _forget(self, id_: int) -> None:
        """Nothing more will come for it, and nothing may be sent."""
        job = self._jobs.pop(id_, None)
        if job is not None:
            job.end()

    def _queue(self, id_: int, event: events.Event) -> None:
        job = self._jobs.get(id_)
        if job is not None:
            job.put(event)


_REACTIONS: dict[type[events.Event], Callable[[Agent, Any], None]] = {
    events.Welcomed: Agent._welcomed,
    events.Replied: Agent._replied,
    events.Ponged: Agent._ponged,
    events.Logged: Agent._logged,
    events.Credited: Agent._credited,
    events.Started: Agent._of_job,
    events.Output: Agent._of_stream,
    events.Ended: Agent._of_stream,
    events.StreamReset: Agent._of_stream,
    events.Exited: Agent._last_of_job,
    events.NotStarted: Agent._last_of_job,
    events.Opened: Agent._open,
}
