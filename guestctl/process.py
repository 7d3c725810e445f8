"""A command in a guest, from its start to its result: streams, time-outs, cancelling."""

from __future__ import annotations

import os
import signal as signals
import time
from collections.abc import Callable
from dataclasses import dataclass

from guestctl import events
from guestctl.agent import Agent, Job
from guestctl.errors import Detached, GuestHung, GuestLost
from guestctl.jobs import job_name
from guestctl.patience import Patience, never_starved
from guestctl.session import STAGE_EXEC
from guestctl.spec import STATUS_BROKEN, STATUS_TIMEOUT, Command, Result, status_of_errno
from guestctl.stdin import StdinWriter
from guestctl.streams import Capture, Rest, Sink, Source

__all__ = ["PIPE", "Host", "Process"]

# As with subprocess: `stdin=PIPE` gives the process a writer of its own.
PIPE = -1

# How long a killed command may take to be gone, before the guest counts as lost: a fork bomb in an
# emulated guest of a busy host takes half of it.
_KILL_GRACE = 60.0
# The shortest time without a sign of life after which a guest counts as hung.
_HUNG_LEAST = 5.0
# A wait that ends so much later than it should was not the guest's doing.
_STALL = 5.0


@dataclass(frozen=True)
class Host:
    """What a process needs of the guest that it runs in.

    `pace` is how many times slower than usual the guest is, `starved` counts the seconds that it
    waited for a processor. `lost` explains a loss, `ended` is told the result, `left` is called
    when the process is left to itself, and `end` ends the guest.
    """

    name: str
    pace: float = 1.0
    starved: Callable[[], float] = never_starved
    lost: Callable[[GuestLost], GuestLost] = lambda error: error
    ended: Callable[[Result], None] = lambda _result: None
    left: Callable[[], None] = lambda: None
    end: Callable[[], None] = lambda: None


class Process:
    """A command that runs in a guest; made by `Guest.start` and `Guest.attach`.

    Its output goes to the sinks while somebody is in `wait`; until then the guest holds it back.
    """

    def __init__(
        self,
        agent: Agent,
        command: Command,
        job: Job,
        *,
        host: Host,
        stdin: bytes | Source | int | None,
        stdout: Sink | None,
        stderr: Sink | None,
        timeout: float | None,
        idle_timeout: float | None,
        seen: tuple[int, int] = (0, 0),
    ) -> None:
        self._agent = agent
        self._command = command
        self._job = job
        self._host = host
        self.received = 0
        self._captures = (Capture(), Capture())
        self._sinks: dict[int, Sink] = {
            1: self._captures[0] if stdout is None else stdout,
            2: self._captures[1] if stderr is None else stderr,
        }
        self._seen = seen
        self._starts: tuple[int, int] | None = None
        self._began = time.time()
        self._begin = time.monotonic()
        self._limits = {
            "no end within": self._patience_of(timeout),
            "no output for": self._patience_of(idle_timeout),
        }
        self._given = {"no end within": timeout, "no output for": idle_timeout}
        if idle_timeout is not None:
            # A guest that hangs is known as such as soon as a command that says nothing.
            agent.heed(max(_HUNG_LEAST, idle_timeout * host.pace))
        self._why_killed = ""
        self._timed_out = False
        self._grace = self._patience_of(None)
        self._detached = False
        self._interrupted = False
        self._result: Result | None = None
        self.stdin = StdinWriter(agent, self._job)
        if not isinstance(stdin, int):
            self.feed(stdin)

    @property
    def id(self) -> int:
        """The number of the command in the guest's session."""
        return self._job.id

    @property
    def result(self) -> Result | None:
        """How it ended, once `wait` has said so."""
        return self._result

    @property
    def name(self) -> str:
        """The job's name, as `Pool.status` and `Pool.adopt` have it."""
        return job_name(self._host.name, self._job.id)

    @property
    def tty(self) -> bool:
        """Whether it has a terminal."""
        return self._command.window is not None

    def feed(self, source: bytes | Source | None) -> None:
        """Has a thread write all of `source` to its stdin, and then end that; None: ends it now.

        For a process made with `stdin=PIPE`, whose caller would rather not write itself.
        """
        self.stdin.feed(source, self._unreadable)

    def signal(self, number: int) -> None:
        """Sends a signal to the command's process group."""
        self._agent.signal(self._job, number)

    def cancel(self) -> None:
        """Kills the command and all that it has started; `wait` then gives the result."""
        self._kill("cancelled")

    def resize(self, rows: int, columns: int) -> None:
        """Tells the command's terminal its new size."""
        self._agent.resize(self._job, rows, columns)

    def detach(self) -> None:
        """Leaves the command to itself and ends the lease's session; `wait` raises Detached.

        Until its time as an orphan is over, `Pool.adopt` finds it again.
        """
        self._detached = True
        self._host.left()

    def interrupt(self) -> bool:
        """For the handler of SIGINT: `wait` raises KeyboardInterrupt as soon as that does no harm.

        Raised anywhere, it may come between taking output and saying so. False: the last one has
        not been noticed yet, so that `wait` is stuck in a sink.
        """
        if self._interrupted:
            return False
        self._interrupted = True
        self._job.wake()
        return True

    def wait(self) -> Result:
        """Passes the output on until the command has ended.

        Raises GuestLost when the guest dies first, Detached after `detach`, and whatever a sink
        raises, after having killed the command. Interrupted once it kills the command and keeps
        the guest; interrupted again while that lasts, it ends the guest.
        """
        self._until(lambda: self._result is not None)
        assert self._result is not None
        return self._result

    def begin(self) -> tuple[int, int]:
        """Waits for the command's start: with which bytes of stdout and stderr its output begins.

        Not the first ones after `Guest.attach`, where its last holder had taken some. What that one
        had handed on and not yet said so is told again.
        """
        self._until(lambda: self._starts is not None or self._result is not None)
        return self._starts or (0, 0)

    def _until(self, done: Callable[[], bool]) -> None:
        try:
            while not done():
                self._step()
        except GuestLost as error:
            if self._detached:
                raise Detached(f"job {self._job.id} goes on without us") from None
            raise self._host.lost(error) from None
        except BaseException:
            # The guest goes back to its pool, so nothing of the command may be left in it.
            self._kill("the caller gave up")
            self._drain()
            raise

    def _drain(self) -> None:
        """Throws the output of a killed command away until it has ended."""
        self._sinks = {1: Capture(0), 2: Capture(0)}
        try:
            while self._result is None:
                self._step()
        except GuestHung as error:
            # The caller is about to hear of something else, and the guest is of no more use.
            self._host.lost(error)
        except GuestLost:
            # The next call on the guest tells.
            return
        except KeyboardInterrupt:
            self._host.end()
            raise

    # --- one event after the other ----------------------------------------------------------

    def _step(self) -> None:
        left, begin = self._left(), time.monotonic()
        event = self._agent.take(self._job, left)
        if event is None and left is not None and time.monotonic() - begin > left + _STALL:
            # We were stopped, or the host was: what came meanwhile has not been read yet.
            self._limits["no output for"].restart()
            return
        if self._interrupted:
            self._interrupted = False
            self._job.put_back(event)
            raise KeyboardInterrupt
        match event:
            case None:
                self._mind_time()
            case events.Output(channel=channel, data=data):
                self.received += len(data)
                try:
                    self._sinks[channel].write(data)
                finally:
                    # Taken, whatever the sink says: the agent keeps the end back until all is.
                    self._agent.consumed(self._job, channel, len(data))
                # Only now: how long a sink takes is not the command's silence.
                self._limits["no output for"].restart()
                self._mind_time()
            case events.Started(stdout=out, stderr=err):
                self._starts = out, err
                for channel, seen, taken in ((1, self._seen[0], out), (2, self._seen[1], err)):
                    if seen > taken:
                        self._sinks[channel] = Rest(self._sinks[channel], seen - taken)
            case events.Exited():
                self._finish(self._ended(event))
            case events.NotStarted():
                self._finish(self._failed(event))
            case _:
                pass

    def _patience_of(self, seconds: float | None) -> Patience:
        """A limit in seconds of a guest at its usual speed, as one that fits this guest."""
        scaled = None if seconds is None else seconds * self._host.pace
        return Patience(scaled, starved=self._host.starved)

    def _left(self) -> float | None:
        """How long to wait for the next event before the clock must be looked at."""
        running = [self._grace] if self._why_killed else list(self._limits.values())
        limits = [left for patience in running if (left := patience.left()) is not None]
        return min(limits) if limits else None

    def _mind_time(self) -> None:
        if self._why_killed:
            if self._grace.over():
                raise GuestHung(f"the guest did not end a killed command in {_KILL_GRACE:g} s")
            return
        for what, patience in self._limits.items():
            if patience.over():
                self._timed_out = True
                self._kill(f"{what} {self._given[what]:g} s{self._scaled(patience)}")

    def _scaled(self, patience: Patience) -> str:
        """Explains a limit that was not taken literally."""
        if self._host.pace == 1.0:
            return ""
        return f" ({patience.seconds:.3g} s in this guest, {self._host.pace:.2g} times slower)"

    def _kill(self, why: str) -> None:
        if self._result is None and not self._why_killed:
            self._why_killed = why
            self._grace = self._patience_of(_KILL_GRACE)
            self._agent.kill(self._job)

    def _finish(self, result: Result) -> None:
        self._result = result
        self._host.ended(result)

    def _ended(self, event: events.Exited) -> Result:
        if self._timed_out:
            return self._made("timeout", STATUS_TIMEOUT, event, error=self._why_killed)
        if event.signalled:
            return self._made("signalled", 128 + event.value, event, error=self._why_killed)
        return self._made("exited", event.value, event)

    def _failed(self, event: events.NotStarted) -> Result:
        if self._timed_out:
            # Its time was over before it ran.
            return self._made("timeout", STATUS_TIMEOUT, None, error=self._why_killed)
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
            guest=self._host.name,
            job=self._job.id,
            began=self._began,
            pace=self._host.pace,
            output_from=self._starts or (0, 0),
            signal=event.value if event and event.signalled else 0,
            seconds=time.monotonic() - self._begin,
            usage=event.usage if event else Result.usage,
            error=error,
            stdout=out.value(),
            stderr=err.value(),
            truncated=out.truncated or err.truncated,
        )

    def _unreadable(self) -> None:
        """Its stdin ended where its source could not be read any more."""
        self._agent.signal(self._job, signals.SIGHUP)
        self._kill("its stdin could not be read")
