"""A live session with one guest's agent: a socket, the state machine, and a thread that reads.

Any thread may call in. One lock guards the session; each job has a condition on that lock, so a
caller waits for its own job only. When the connection breaks, or the agent falls silent for
`heartbeat` seconds, every waiter gets GuestLost.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from guestctl import events
from guestctl.errors import GuestLost, ProtocolError, RequestFailed
from guestctl.session import Session
from guestctl.spec import Command
from guestctl.wire import Op, Tag

__all__ = ["Agent", "Job"]

_CHUNK = 1 << 18
_LOG_LINES = 100


class Job:
    """A command as the agent sees it: events are queued here until somebody takes them."""

    def __init__(self, id_: int, lock: threading.RLock) -> None:
        self.id = id_
        self.changed = threading.Condition(lock)
        self.queue: deque[events.Event] = deque()
        self.started = False
        self.over = False


class Agent:
    """Created by `connect`. Close it to end the session; jobs that run then become orphans."""

    def __init__(self, connection: socket.socket, *, orphan: float, heartbeat: float) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._session = Session(os.urandom(16), int(orphan * 1000))
        self._heartbeat = heartbeat
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._out: deque[memoryview] = deque()
        self._jobs: dict[int, Job] = {}
        self._replies: dict[int, events.Replied] = {}
        self._pongs: set[int] = set()
        self._lost = ""
        self._closed = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.welcome: events.Welcomed | None = None
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self._thread = threading.Thread(target=self._serve, name="guestctl-agent", daemon=True)

    @classmethod
    def connect(
        cls,
        connection: socket.socket,
        *,
        timeout: float,
        orphan: float = 60.0,
        heartbeat: float = 60.0,
    ) -> Agent:
        """Begins a session over `connection`, which it takes over.

        Raises GuestLost when no welcome comes within `timeout` seconds, ProtocolError when the
        agent is of another version.
        """
        agent = cls(connection, orphan=orphan, heartbeat=heartbeat)
        try:
            with agent._lock:
                agent._send(agent._session.hello())
            agent._thread.start()
            agent._await(lambda: agent.welcome is not None, timeout, "the agent did not answer")
        except BaseException:
            agent.close()
            raise
        return agent

    @property
    def lost(self) -> str:
        """Why the session broke, empty while it lives."""
        return self._lost

    def close(self) -> None:
        """Ends the session; a second time does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        os.write(self._wake_write, b"x")
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(5)
        self._socket.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # --- requests ---------------------------------------------------------------------------

    def request(self, op: Op, records: Iterable[tuple[Tag, bytes]] = (), *, timeout: float) -> None:
        """Asks the agent for `op` and waits; raises RequestFailed or GuestLost."""
        with self._lock:
            self._check()
            id_, data = self._session.request(op, records)
            self._send(data)
            self._await(
                lambda: id_ in self._replies, timeout, f"no reply to {op.name} in {timeout:g} s"
            )
            reply = self._replies.pop(id_)
        if reply.errno:
            text = reply.text or os.strerror(reply.errno)
            raise RequestFailed(f"{op.name.lower()}: {text}", errno=reply.errno)

    def ping(self, timeout: float) -> float:
        """The seconds that an answer took; raises GuestLost."""
        begin = time.monotonic()
        token = int.from_bytes(os.urandom(7), "little")
        with self._lock:
            self._check()
            self._send(self._session.ping(token))
            self._await(lambda: token in self._pongs, timeout, f"no pong in {timeout:g} s")
            self._pongs.discard(token)
        return time.monotonic() - begin

    # --- jobs -------------------------------------------------------------------------------

    def start(self, command: Command) -> Job:
        """Starts a command. What becomes of it comes through `take`."""
        with self._lock:
            self._check()
            id_, data = self._session.start(command)
            job = self._jobs[id_] = Job(id_, self._lock)
            self._send(data)
        return job

    def take(self, job: Job, timeout: float | None) -> events.Event | None:
        """The next event of `job`, or None after `timeout` seconds; raises GuestLost."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while not job.queue:
                # What came before the loss is still handed out.
                self._check()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                job.changed.wait(left)
            return job.queue.popleft()

    def write(self, job: Job, data: bytes, *, timeout: float | None = None) -> bool:
        """Sends stdin, waiting for room. False: the command does not read any more."""
        deadline = None if timeout is None else time.monotonic() + timeout
        view = memoryview(data)
        with self._lock:
            while view:
                self._check()
                if job.over:
                    return False
                room = self._session.room(job.id)
                if not room:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise TimeoutError("the command does not take its stdin")
                    job.changed.wait(left)
                    continue
                self._send(self._session.send(job.id, bytes(view[:room])))
                view = view[room:]
        return True

    def end_stdin(self, job: Job) -> None:
        self._tell(lambda: self._session.send_eof(job.id))

    def consumed(self, job: Job, channel: int, count: int) -> None:
        """Gives the agent credit for output that has been taken."""
        self._tell(lambda: self._session.consumed(job.id, channel, count))

    def signal(self, job: Job, number: int) -> None:
        """Sends a signal to the command's process group."""
        self._tell(lambda: self._session.signal(job.id, number))

    def kill(self, job: Job) -> None:
        """Kills all that the command has started."""
        self._tell(lambda: self._session.kill(job.id))

    def _tell(self, make: Callable[[], bytes]) -> None:
        with self._lock:
            if not self._lost and not self._closed:
                self._send(make())

    # --- the connection ---------------------------------------------------------------------

    def _check(self) -> None:
        if self._lost:
            raise GuestLost(self._lost)
        if self._closed:
            raise GuestLost("the session was closed")

    def _await(self, done: Callable[[], bool], timeout: float, message: str) -> None:
        """Waits on the session's condition until `done`."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while not done():
                self._check()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise GuestLost(message)
                self._changed.wait(left)

    def _send(self, data: bytes) -> None:
        """Sends what the socket takes now and leaves the rest to the thread; holds the lock."""
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
            os.write(self._wake_write, b"x")

    def _serve(self) -> None:
        """The thread: reads, writes what is left over, minds the heartbeat."""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._socket, selectors.EVENT_READ)
                selector.register(self._wake_read, selectors.EVENT_READ)
                self._pump(selector)
        except ProtocolError as error:
            self._break(f"the agent broke the protocol: {error}")
        except OSError as error:
            self._break(f"the connection to the guest broke: {error.strerror or error}")

    def _pump(self, selector: selectors.BaseSelector) -> None:
        heard = time.monotonic()
        pinged = heard
        while True:
            ready = {key.fd for key, _mask in selector.select(self._heartbeat / 4)}
            now = time.monotonic()
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._closed:
                return
            if self._socket.fileno() in ready and self._receive():
                heard = now
            self._flush(selector)
            if now - heard > self._heartbeat:
                raise OSError(f"nothing heard for {self._heartbeat:g} s")
            if now - max(heard, pinged) > self._heartbeat / 2:
                pinged = now
                self._tell(lambda: self._session.ping(0))

    def _receive(self) -> bool:
        """Reads once; says whether anything came."""
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return False
        if not data:
            raise OSError("end of file")
        with self._lock:
            for event in self._session.feed(data):
                self._dispatch(event)
        return True

    def _flush(self, selector: selectors.BaseSelector) -> None:
        with self._lock:
            while self._out:
                try:
                    sent = self._socket.send(self._out[0])
                except BlockingIOError:
                    break
                rest = self._out.popleft()[sent:]
                if rest:
                    self._out.appendleft(rest)
            waiting = selectors.EVENT_WRITE if self._out else 0
            selector.modify(self._socket, selectors.EVENT_READ | waiting)

    def _break(self, reason: str) -> None:
        with self._lock:
            self._lost = reason
            self._changed.notify_all()
            for job in self._jobs.values():
                job.changed.notify_all()

    def _dispatch(self, event: events.Event) -> None:
        """Hands an event to whom it concerns; holds the lock."""
        match event:
            case events.Started(job=id_):
                self._jobs[id_].started = True
                self._queue(id_, event)
            case events.Output(stream=id_) | events.Ended(stream=id_):
                self._queue(id_, event)
            case events.Credited(stream=id_):
                if id_ in self._jobs:
                    self._jobs[id_].changed.notify_all()
            case events.Exited(job=id_) | events.NotStarted(job=id_):
                self._jobs[id_].over = True
                self._queue(id_, event)
                del self._jobs[id_]
            case events.Replied(request=id_):
                self._replies[id_] = event
                self._changed.notify_all()
            case events.Ponged(token=token):
                if token:
                    self._pongs.add(token)
                    self._changed.notify_all()
            case events.Welcomed():
                self.welcome = event
                self._changed.notify_all()
            case events.Opened(stream=id_):
                # No service is offered yet.
                self._send(self._session.refuse(id_, 111, "no such service"))
            case events.Logged(text=text):
                self.log.append(text)
            case _:
                pass

    def _queue(self, id_: int, event: events.Event) -> None:
        job = self._jobs.get(id_)
        if job is not None:
            job.queue.append(event)
            job.changed.notify_all()
