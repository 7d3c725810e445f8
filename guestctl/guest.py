"""A guest that the caller has leased: run commands in it, mount its share, give it back."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from guestctl.agent import Job
from guestctl.errors import PoolError
from guestctl.invocation import WINDOW, Text, invocation
from guestctl.lease import Lease
from guestctl.loss import explained, explaining
from guestctl.mounting import WORK
from guestctl.process import PIPE, Host, Process
from guestctl.spec import Command, Result
from guestctl.streams import Sink, Source

__all__ = ["Guest"]


class Guest(Lease):
    """Made by `Pool.lease`. A context manager: leaving it gives the guest back.

    `work` is its share; `jobs` is a good number for `make -j`; `pace` is how many times slower than
    usual it is; `orphans` are the jobs that an earlier holder has left in it. `offload` compiles
    for it on the host, None where that is off. A `board` is no guest, and has no share.
    """

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
