"""A guest that the caller has leased: run commands in it, mount its share, give it back."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guestctl import services
from guestctl.agent import Agent, Job
from guestctl.errors import GuestLost, PoolError, ShareError
from guestctl.invocation import WINDOW, Text, invocation
from guestctl.jobs import JobBook
from guestctl.journal import record
from guestctl.loss import explained, explaining
from guestctl.metering import Meter
from guestctl.mounting import WORK, Mounting
from guestctl.process import PIPE, Host, Process
from guestctl.rundir import GuestDir, connected_socket
from guestctl.share import Share
from guestctl.spec import Command, Result
from guestctl.streams import Sink, Source
from guestctl.wire import Op, Tag

if TYPE_CHECKING:
    from guestctl.offload import Offload

__all__ = ["Guest"]

_MEMORY_PER_JOB = 80
_SETTLE_TIMEOUT = 10.0
_CLOCK_TIMEOUT = 30.0


class Guest:
    """Made by `Pool.lease`. A context manager: leaving it gives the guest back.

    `work` is its share; `jobs` is a good number for `make -j`; `pace` is how many times slower than
    usual it is; `orphans` are the jobs that an earlier holder has left in it. `offload` compiles
    for it on the host, None where that is off. A `board` is no guest, and has no share.
    """

    def __init__(self, folder: GuestDir, lease: int, agent: Agent) -> None:
        spec = folder.spec()
        self.name = folder.name
        self.arch = str(spec["arch"])
        self.board = bool(spec.get("member"))
        model = str(spec["security_model"])
        self.work = Share(Path(spec["work"]), self.name, model)
        self.base = Share(
            Path(spec["base"]),
            self.name,
            model,
            writable=False,
            confined=bool(spec["namespaces"]),
        )
        # An emulated target has one processor here, whatever its memory would allow.
        self.jobs = 1 if spec["accelerator"] == "tcg" else max(1, spec["memory"] // _MEMORY_PER_JOB)
        self.pace = float(folder.state().get("pace", 1.0))
        self.orphans = agent.welcome.jobs if agent.welcome else ()
        self._folder = folder
        self._lease: int | None = lease
        self._agent = agent
        self._book = JobBook(folder)
        self._detached = False
        self._meter = Meter(agent, self._book)
        self._mounting = Mounting(folder, self.work, self.base, self._request)
        self.offload: Offload | None = None
        # What the pool counts its leases by, see guestctl.leasing.
        self.seat: int | None = None

    @classmethod
    def connect(
        cls,
        folder: GuestDir,
        lease: int,
        *,
        timeout: float = 30.0,
        orphan: float = 60.0,
        adopt: bool = False,
    ) -> Guest | None:
        """Begins a session with a guest whose lease the caller holds.

        Jobs outlive the caller by `orphan` seconds. None: commands of an earlier holder still run
        in it, and the caller does not want to `adopt` them. Raises GuestLost.
        """
        try:
            agent = Agent.connect(
                connected_socket(folder.agent),
                timeout=timeout,
                orphan=orphan,
                hangs_up=folder.spec()["channel"] == "virtio",
                starved=folder.starvation(),
            )
        except GuestLost as error:
            raise explained(folder, error) from None
        except OSError as error:
            raise explained(folder, GuestLost(str(error))) from None
        guest = cls(folder, lease, agent)
        if guest.orphans and not adopt:
            agent.close()
            return None
        try:
            guest._take_up()
        except BaseException:
            agent.close()
            raise
        return guest

    def _take_up(self) -> None:
        """Brings the guest into the state that a new holder expects it in."""
        if self.orphans:
            self._mounting.keep_leftovers()
        else:
            self._book.expire()
            self._mounting.undo_leftovers()
        if not self._folder.spec().get("member"):
            # Its last user may have set it, and it stands still while the host is suspended.
            now = time.time_ns().to_bytes(8, "little")
            self._request(Op.CLOCK, (Tag.CLOCK, now), timeout=_CLOCK_TIMEOUT)
        self._begin_offload()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Ends the session and frees the guest for others; a second time does nothing.

        Commands that still run are killed, unless they were left to themselves by `detach`.
        """
        if self._lease is None:
            return
        try:
            self._meter.stop()
            if not self._detached:
                self._agent.forget_all()
                if self.orphans and self.work.mounted and not self._agent.lost:
                    # We have seen the orphan to its end; where there is another, that uses it.
                    with suppress(ShareError):
                        self._mounting.undo_leftovers()
                self._book.clear()
                with suppress(GuestLost):
                    self._agent.settle(_SETTLE_TIMEOUT)
        finally:
            if self._agent.hostile:
                self._folder.condemn(self._agent.lost)
            self._agent.close()
            if self.offload:
                self.offload.close()
            self.work.unlock()
            self.base.unlock()
            record(self._folder.journal, "release", guest=self.name)
            os.ftruncate(self._lease, 0)
            os.close(self._lease)
            self._lease = None
            if self.seat is not None:
                os.close(self.seat)
                self.seat = None

    def _begin_offload(self) -> None:
        spec = self._folder.spec()
        if spec["offload"] == "off":
            return
        # Only now: it brings much with it.
        from guestctl.offload import Offload

        self.offload = Offload(self._agent, spec)
        self.jobs = self.offload.jobs(spec["memory"])

    # --- commands ---------------------------------------------------------------------------

    def start(
        self,
        argv: Sequence[Text],
        *,
        root: Text | None = None,
        cwd: Text | None = None,
        env: Mapping[str, Text] | None = None,
        user: tuple[int, int] = (0, 0),
        umask: int = 0o022,
        limits: Mapping[int, tuple[int, int]] | None = None,
        stdin: bytes | Source | int | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        log: Sink | None = None,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        window: tuple[int, int] | None = None,
        tty: bool = False,
    ) -> Process:
        """Starts a command and returns at once.

        `root` and `cwd` are paths in the guest (`cwd` within `root`; default: `/`, or the share
        while it is mounted and no root is given). The environment is PATH, HOME and LANG, plus
        `env`. `stdin` is bytes, a binary file, PIPE, or None for nothing. Output goes to
        `stdout` and `stderr`, to `log` for both, or is captured in the result. `timeout` and
        `idle_timeout` (since the last output) are in seconds of a guest at its usual speed, see
        docs/decisions/0043-time-outs.md. With `tty` the command gets a terminal of `window` (rows,
        columns): all its output goes to `stdout`. Raises UsageError, GuestLost.
        """
        if cwd is None:
            cwd = WORK if self.work.mounted and root is None else "/"
        command = invocation(
            argv,
            root=root,
            cwd=cwd,
            env=env,
            user=user,
            umask=umask,
            limits=limits,
            window=(window or WINDOW) if tty else None,
            path=self.offload.path if self.offload else str,
        )

        def announce(number: int) -> None:
            self._book.opened(number, command, timeout=timeout, idle_timeout=idle_timeout)

        with explaining(self._folder):
            job = self._agent.start(command, announce)
        return self._process(
            job,
            command,
            stdin=stdin,
            stdout=stdout or log,
            stderr=stderr or log,
            timeout=timeout,
            idle_timeout=idle_timeout,
        )

    def attach(
        self,
        number: int | None = None,
        *,
        stdin: bytes | Source | int | None = PIPE,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        seen: tuple[int, int] = (0, 0),
    ) -> Process:
        """Takes an orphan over, in a guest from `Pool.adopt`: job `number`, or the only one.

        Its output is handed on from where the last holder stopped taking it, see `Process.begin`,
        without the bytes of stdout and stderr that have been `seen`, counted from the command's
        start. The time-outs are those that it was started with, as far as they are known, unless
        others are given; the hard one goes on from that start. Raises PoolError, GuestLost.
        """
        if number is None:
            if len(self.orphans) != 1:
                raise PoolError(f"guest {self.name} has {len(self.orphans)} orphans; name one")
            (number,) = self.orphans
        elif number not in self.orphans:
            raise PoolError(f"guest {self.name} has no orphan {number}")
        facts = self._book.taken_over(number)
        if timeout is None and facts.get("timeout") is not None:
            timeout = max(0.0, facts["timeout"] - (time.time() - facts["since"]) / self.pace)
        with explaining(self._folder):
            job = self._agent.attach(number)
        return self._process(
            job,
            Command(
                argv=tuple(os.fsencode(arg) for arg in facts.get("argv", [])),
                window=WINDOW if facts.get("tty") else None,
            ),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            timeout=timeout,
            idle_timeout=facts.get("idle_timeout") if idle_timeout is None else idle_timeout,
            seen=seen,
        )

    def _process(self, job: Job, command: Command, **options: Any) -> Process:
        """The process of a job that has just been started, or taken over."""
        host = Host(
            name=self.name,
            pace=self.pace,
            starved=self._folder.starvation(),
            lost=lambda error: explained(self._folder, error),
            ended=lambda result: self._ended(job.id, result),
            left=self.detach,
            end=self.kill,
        )
        process = Process(self._agent, command, job, host=host, **options)
        self._book.counted(job.id, lambda: process.received)
        self._meter.start()
        return process

    def _ended(self, number: int, result: Result) -> None:
        self._book.closed(number, result)
        if self.offload:
            self.offload.ended(number, result)

    def detach(self) -> None:
        """Ends the session and leaves what runs to itself, for `Pool.adopt` to find."""
        self._detached = True
        self._mounting.leave()
        self._agent.close()

    def kill(self) -> None:
        """Ends the guest itself, at once: for when it does not even end a command."""
        qemu = self._folder.qemu()
        if qemu is not None:
            qemu.send(signal.SIGKILL)

    def run(
        self, argv: Sequence[Text], *, max_local: float | None = None, **options: Any
    ) -> Result:
        """Starts a command and waits for its end; takes what `start` takes.

        With `max_local`, a result with status 0 becomes an error when more than so many percent of
        the calls that offload is there for ran in the guest after all.
        """
        process = self.start(argv, **options)
        return self.judge(process, process.wait(), max_local)

    def judge(self, process: Process, result: Result, max_local: float | None) -> Result:
        """The result, or the error that it becomes by `max_local`, as for `run`."""
        if max_local is None or result.status:
            return result
        local = self.offload.too_local(process.id, max_local) if self.offload else "it is off"
        return result.failed(f"offload: {local}") if local else result

    # --- the share --------------------------------------------------------------------------

    def mounted(self, *, sysroot: Sequence[str] | None = None) -> AbstractContextManager[None]:
        """The share is mounted at /work, and out of the host's reach, for as long as this lasts.

        With `sysroot` the guest's read-only base is mounted too: at /sysroot it is a `root` for
        commands. What they write there stays on the guest's own disk and is forgotten at the end,
        but for the folders that `sysroot` names, which are those of the share.

        Should the guest be lost meanwhile, the share is marked as dirty, see Share.dirt. Raises
        ShareError for a share that was staged in part only, and for a board, which has none.
        """
        if sysroot is not None and self.offload:
            self.offload.renew()
        return self._mounting.mounted(sysroot)

    # --- the rest ---------------------------------------------------------------------------

    def sync(self) -> None:
        """Writes what the guest holds in memory to its disks and shares."""
        self._request(Op.SYNC)

    def ping(self, timeout: float = 10.0) -> float:
        """The seconds that the agent takes to answer; raises GuestLost."""
        with explaining(self._folder):
            return self._agent.ping(timeout)

    def offer(self, service: str, handler: Callable[[socket.socket], None]) -> None:
        """Offers a service of the host to processes in this guest, for as long as the lease lasts.

        A process connects to the abstract unix socket `guestctl` and writes the service's name as
        a line. `handler` runs in a thread of its own, with a socket that is the other end.
        """
        services.offer(self._agent, service.encode(), handler)

    def console_tail(self) -> str:
        """The last lines of the kernel's console."""
        return self._folder.console_tail()

    def _request(self, op: Op, *records: tuple[Tag, bytes], timeout: float = 120.0) -> None:
        with explaining(self._folder):
            self._agent.request(op, records, timeout=timeout)
