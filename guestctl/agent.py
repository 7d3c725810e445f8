"""One guest's agent: the commands that run there, and the services that the guest may call.

Each job has a condition on the session's lock, so a caller waits for its own job only.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, ClassVar

from guestctl import events
from guestctl.conversation import Conversation, Reactions
from guestctl.errors import GuestLost
from guestctl.job import Job
from guestctl.patience import Patience
from guestctl.session import SERVICE_BIT
from guestctl.spec import Command

__all__ = ["Agent", "Job"]


class Agent(Conversation):
    def __init__(self, *given: Any, **options: Any) -> None:
        self._jobs: dict[int, Job] = {}
        self._services: dict[bytes, Callable[[Job], None]] = {}
        super().__init__(*given, **options)

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
        self._tell(lambda: self._session.forget(id_))

    def _break(self, reason: GuestLost) -> None:
        with self._lock:
            super()._break(reason)
            for job in self._jobs.values():
                job.changed.notify_all()

    # --- what the agent says of them ----------------------------------------------------------

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

    _reactions: ClassVar[Reactions] = {
        **Conversation._reactions,
        events.Credited: _credited,
        events.Started: _of_job,
        events.Output: _of_stream,
        events.Ended: _of_stream,
        events.StreamReset: _of_stream,
        events.Exited: _last_of_job,
        events.NotStarted: _last_of_job,
        events.Opened: _open,
    }
