"""A command in a guest, from its start to its result: streams, time-outs, cancelling."""

from __future__ import annotations

import os
import signal as signals
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, Protocol

from guestctl import events
from guestctl.agent import Agent, Job
from guestctl.errors import GuestLost
from guestctl.session import STAGE_EXEC
from guestctl.spec import STATUS_BROKEN, STATUS_TIMEOUT, Command, Result, status_of_errno

__all__ = ["PIPE", "Capture", "Process", "Sink", "StdinWriter"]

# As with subprocess: `stdin=PIPE` gives the process a writer of its own.
PIPE = -1

CAPTURE_LIMIT = 64 << 20
_CHUNK = 1 << 16
# How long a killed command may take to be gone, before the guest counts as lost.
_KILL_GRACE = 30.0


class Sink(Protocol):
    """Where output goes; anything with a binary `write`."""

    def write(self, data: bytes, /) -> object: ...


class Capture:
    """Keeps the first `limit` bytes, and the fact that there were more."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = CAPTURE_LIMIT if limit is None else limit
        self._parts: list[bytes] = []
        self._size = 0
        self.truncated = False

    def write(self, data: bytes, /) -> None:
        kept = data[: max(0, self._limit - self._size)]
        self.truncated |= len(kept) < len(data)
        self._size += len(kept)
        if kept:
            self._parts.append(kept)

    def value(self) -> bytes:
        return b"".join(self._parts)


class StdinWriter:
    """The stdin of a process started with `stdin=PIPE`. `write` waits while the command does not
    read; what it does not read any more is dropped."""

    def __init__(self, agent: Agent, job: Job) -> None:
        self._agent = agent
        self._job = job

    def write(self, data: bytes, *, timeout: float | None = None) -> int:
        """Sends all of `data`; raises TimeoutError after `timeout` seconds, or GuestLost."""
        self._agent.write(self._job, data, timeout=timeout)
        return len(data)

    def close(self) -> None:
        self._agent.end_stdin(self._job)


class Process:
    """A command that runs in a guest; made by `Guest.start`.

    Its output goes to the sinks while somebody is in `wait`; until then the guest holds it back.
    """

    def __init__(
        self,
        agent: Agent,
        command: Command,
        *,
        guest: str,
        stdin: bytes | BinaryIO | int | None,
        stdout: Sink | None,
        stderr: Sink | None,
        timeout: float | None,
        idle_timeout: float | None,
        lost: Callable[[GuestLost], GuestLost],
    ) -> None:
        self._agent = agent
        self._command = command
        self._guest = guest
        self._captures = (Capture(), Capture())
        self._sinks: dict[int, Sink] = {
            1: self._captures[0] if stdout is None else stdout,
            2: self._captures[1] if stderr is None else stderr,
        }
        self._begin = time.monotonic()
        self._deadline = None if timeout is None else self._begin + timeout
        self._timeout = timeout
        self._idle_timeout = idle_timeout
        self._heard = self._begin
        self._why_killed = ""
        self._killed_at = 0.0
        self._explain = lost
        self._result: Result | None = None
        try:
            self._job = agent.start(command)
        except GuestLost as error:
            raise self._explain(error) from None
        self.stdin = StdinWriter(agent, self._job)
        if stdin is None:
            self.stdin.close()
        elif not isinstance(stdin, int):
            threading.Thread(target=self._feed, args=(stdin,), daemon=True).start()

    @property
    def result(self) -> Result | None:
        """How it ended, once `wait` has said so."""
        return self._result

    def signal(self, number: int) -> None:
        """Sends a signal to the command's process group."""
        self._agent.signal(self._job, number)

    def cancel(self) -> None:
        """Kills the command and all that it has started; `wait` then gives the result."""
        self._kill("cancelled")

    def wait(self) -> Result:
        """Passes the output on until the command has ended.

        Raises GuestLost when the guest dies first, and whatever a sink raises, after having
        killed the command.
        """
        if self._result is not None:
            return self._result
        try:
            while self._result is None:
                self._step()
        except GuestLost as error:
            raise self._explain(error) from None
        except BaseException:
            # The guest goes back to its pool, so nothing of the command may be left in it.
            self._kill("the caller gave up")
            self._drain()
            raise
        return self._result

    def _drain(self) -> None:
        """Throws the output of a killed command away until it has ended."""
        self._sinks = {1: Capture(0), 2: Capture(0)}
        try:
            while self._result is None:
                self._step()
        except GuestLost:
            # The caller is about to hear of something else; the next call on the guest tells.
            return

    # --- one event after the other ----------------------------------------------------------

    def _step(self) -> None:
        event = self._agent.take(self._job, self._patience())
        match event:
            case None:
                self._mind_time()
            case events.Output(channel=channel, data=data):
                self._heard = time.monotonic()
                self._sinks[channel].write(data)
                self._agent.consumed(self._job, channel, len(data))
                self._mind_time()
            case events.Exited():
                self._result = self._ended(event)
            case events.NotStarted():
                self._result = self._failed(event)
            case _:
                pass

    def _patience(self) -> float | None:
        """How long to wait for the next event before the clock must be looked at."""
        limits = []
        if self._killed_at:
            limits.append(self._killed_at + _KILL_GRACE)
        else:
            if self._deadline is not None:
                limits.append(self._deadline)
            if self._idle_timeout is not None:
                limits.append(self._heard + self._idle_timeout)
        return max(0.0, min(limits) - time.monotonic()) if limits else None

    def _mind_time(self) -> None:
        now = time.monotonic()
        if self._killed_at:
            if now >= self._killed_at + _KILL_GRACE:
                raise GuestLost(f"the guest did not end a killed command in {_KILL_GRACE:g} s")
        elif self._deadline is not None and now >= self._deadline:
            self._kill(f"no end within {self._timeout:g} s")
        elif self._idle_timeout is not None and now >= self._heard + self._idle_timeout:
            self._kill(f"no output for {self._idle_timeout:g} s")

    def _kill(self, why: str) -> None:
        if self._result is None and not self._killed_at:
            self._why_killed = why
            self._killed_at = time.monotonic()
            self._agent.kill(self._job)

    def _ended(self, event: events.Exited) -> Result:
        timed_out = self._why_killed.startswith("no ")
        if timed_out:
            return self._made("timeout", STATUS_TIMEOUT, event, error=self._why_killed)
        if event.signalled:
            return self._made("signalled", 128 + event.value, event, error=self._why_killed)
        return self._made("exited", event.value, event)

    def _failed(self, event: events.NotStarted) -> Result:
        at_exec = event.stage == STAGE_EXEC
        status = status_of_errno(event.errno) if at_exec else STATUS_BROKEN
        reason = os.strerror(event.errno)
        text = reason if at_exec else f"cannot start: {event.text} ({reason})"
        return self._made("error", status, None, error=text)

    def _made(
        self, outcome: str, status: int, event: events.Exited | None, *, error: str = ""
    ) -> Result:
        out, err = self._captures
        return Result(
            argv=self._command.argv,
            outcome=outcome,  # type: ignore[arg-type]
            status=status,
            guest=self._guest,
            signal=event.value if event and event.signalled else 0,
            seconds=time.monotonic() - self._begin,
            usage=event.usage if event else Result.usage,
            error=error,
            stdout=out.value(),
            stderr=err.value(),
            truncated=out.truncated or err.truncated,
        )

    def _feed(self, source: bytes | BinaryIO) -> None:
        """The thread that passes a caller's stdin on."""
        try:
            if isinstance(source, bytes):
                self._agent.write(self._job, source)
            else:
                read = getattr(source, "read1", source.read)
                while data := read(_CHUNK):
                    if not self._agent.write(self._job, data):
                        return
            self._agent.end_stdin(self._job)
        except GuestLost:
            # `wait` tells the caller.
            return
        except (OSError, ValueError):
            # A source that cannot be read must not look like one that has ended.
            self._agent.signal(self._job, signals.SIGHUP)
            self._kill("its stdin could not be read")
