"""How a guest comes up: a QEMU that becomes a clone or boots, and an agent that is made ready."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from guestctl.console import ConsoleKeeper
from guestctl.errors import GuestctlError
from guestctl.memory import is_sealed
from guestctl.patience import Patience, pace_of
from guestctl.processes import ProcessId, children, processor_time
from guestctl.qemu.bounds import Group, group_for
from guestctl.qemu.confine import Confinement
from guestctl.qemu.machine import Machine
from guestctl.qemu.spawn import Running, copy_disk, empty_disk, scratch_disk, spawn
from guestctl.rundir import GuestDir
from guestctl.sockets import bound_socket, connected_socket
from guestctl.spec import GuestSpec
from guestctl.standing import Standing
from guestctl.targets import target
from guestctl.template import NoTemplate, Template, load

if TYPE_CHECKING:
    from guestctl.bridge import Bridge

__all__ = ["Birth", "MadeOf", "kill", "reaped"]

_SEED_BYTES = 256
_EXIT_TIMEOUT = 3.0
# A clone takes a tenth of a second; where it takes this long it will never come.
_CLONE_TIMEOUT = 20.0


@dataclass(frozen=True)
class MadeOf:
    """What a clone is made of: descriptors of a template's files, and how slow its guest was.
    `filled` is a pipe that ends when the memory is there, -1 where it is."""

    ident: str
    pace: float
    memory: int
    filled: int
    state: int
    scratch: int


class Birth:
    """Of the guest in `folder`. `stopping` says whether somebody has asked for its end already;
    while `interruptible`, that may be raised out of `come`."""

    def __init__(
        self,
        folder: GuestDir,
        spec: GuestSpec,
        standing: Standing,
        stopping: Callable[[], bool],
    ) -> None:
        self._folder = folder
        self._spec = spec
        self._standing = standing
        self._stopping = stopping
        self._bridge: Bridge | None = None
        self.interruptible = False
        self.pace = 1.0
        self.running: Running | None = None
        self.group: Group | None = None
        self.console: ConsoleKeeper | None = None

    def come(self, agent: socket.socket, monitor: socket.socket, made_of: MadeOf | None) -> None:
        """Makes the guest a clone, or boots it where that is not possible.

        Raises GuestctlError and OSError.
        """
        spec, told = self._spec, self._standing
        if made_of is not None:
            template = Template(Path(spec.template))
            try:
                self._bring_up(agent, monitor, made_of, min(spec.boot_timeout, _CLONE_TIMEOUT))
            except (GuestctlError, OSError) as error:
                if self._stopping():
                    raise
                reason = f"a clone did not come: {self._unstarted(str(error))}"
                if not isinstance(error, NoTemplate):
                    template.blame(reason)
                told.note(start_reason=reason)
                self._folder.boot_console.unlink(missing_ok=True)
                agent, monitor = (
                    bound_socket(path) for path in (self._folder.agent, self._folder.monitor)
                )
            else:
                template.prove()
                told.note(
                    start="clone", start_reason="", origin=made_of.ident, memory_fd=made_of.memory
                )
                return
        else:
            told.note(start_reason=spec.cold)
        self._bring_up(agent, monitor, None, spec.boot_timeout)
        told.note(start="cold")

    def _bring_up(
        self, agent: socket.socket, monitor: socket.socket, made_of: MadeOf | None, timeout: float
    ) -> None:
        self._spawn(agent, monitor, made_of)
        self.interruptible = True
        if self._stopping():
            raise GuestctlError("it was stopped")
        if made_of is not None:
            _await_memory(made_of, timeout)
            load(self._folder.monitor, made_of.state)
        self._make_ready(made_of, timeout)
        self.interruptible = False

    def _unstarted(self, cause: str) -> str:
        """Removes a QEMU that did not become a clone; returns why not."""
        self.interruptible = False
        if self.running is not None:
            if reaped(self.running, 0.5):
                cause = self._standing.cause(self.running.process.returncode, "", cause)
            else:
                kill(self.running, self._folder.qemu())
            if self.console is not None:
                self.console.close(2)
            self.running = None
        for path in (self._folder.agent, self._folder.monitor):
            path.unlink(missing_ok=True)
        return cause

    def _spawn(self, agent: socket.socket, monitor: socket.socket, made_of: MadeOf | None) -> None:
        spec = self._spec
        confinement = Confinement(spec.namespaces, reason=spec.unconfined_reason)
        # A clone reads nothing of its disk before it is loaded, so that can be copied meanwhile.
        new = empty_disk if made_of else scratch_disk
        scratch = new(Path(spec.scratch_folder), spec.scratch)
        if spec.channel != "virtio":
            from guestctl.bridge import bridged

            self._bridge, agent = bridged(spec.channel, agent)
        with open(self._folder.path / "qemu.log", "wb") as log, agent, monitor:
            self.running = spawn(
                replace(Machine.of(spec), saving="load" if made_of else ""),
                confinement,
                agent=agent,
                monitor=monitor,
                scratch=scratch,
                log=log.fileno(),
                ram=made_of.memory if made_of else -1,
                state=made_of.state if made_of else -1,
                mark=str(self._folder.path),
                meanwhile=_load_agent,
            )
        pids = {self.running.process.pid, *children(self.running.process.pid), self.running.pid}
        name = f"{self._folder.path.parent.name}-{spec.name}-{os.getpid()}"
        self.group = group_for(sorted(pids - {0}), name, spec.memory)
        self._standing.bounded(str(self.group.folder) if self.group else "")
        # Our copies are closed now, so that QEMU's end is seen as the sockets' end.
        self._folder.keyboard.unlink(missing_ok=True)
        self.console = ConsoleKeeper(
            self.running.console, self._folder.console, bound_socket(self._folder.keyboard)
        )
        self.console.start()
        self._standing.tell("booting", self.running)
        try:
            if made_of:
                copy_disk(made_of.scratch, scratch)
        finally:
            os.close(scratch)

    def _make_ready(self, made_of: MadeOf | None, timeout: float) -> None:
        """Waits for the agent and makes the guest usable; raises GuestLost."""
        # Loaded while QEMU started.
        from guestctl.agent import Agent
        from guestctl.wire import Op, Tag

        patience = Patience(timeout, starved=self.starved)
        agent = Agent.connect(
            connected_socket(self._folder.agent),
            timeout=timeout,
            orphan=0,
            orderly=True,
            starved=self.starved,
        )
        own = (
            (Tag.CLOCK, time.time_ns().to_bytes(8, "little")),
            (Tag.SEED, os.urandom(_SEED_BYTES)),
            (Tag.HOSTNAME, self._spec.hostname.encode()),
        )
        try:
            left = max(1.0, patience.left() or 0.0)
            if made_of is not None:
                agent.request(Op.RENEW, own, timeout=left)
                self.pace = made_of.pace
            else:
                before = self._processor_time()[0]
                swap = (Tag.SWAP, self._spec.swap.to_bytes(4, "little"))
                agent.request(Op.PREPARE, (*own, swap), timeout=left)
                seconds = self._processor_time()[0] - before
                self._standing.note(prepare_seconds=round(seconds, 4))
                self.pace = pace_of(seconds, target(self._spec.arch).prepare_seconds)
            self._standing.note(pace=self.pace)
        finally:
            agent.close()
        # All that was sent was answered.
        self._folder.mark_orderly()

    def _processor_time(self) -> tuple[float, float]:
        return processor_time(self.running.pid) if self.running else (0.0, 0.0)

    def starved(self) -> float:
        """For how long the guest has waited for a processor."""
        return self._processor_time()[1]


def _load_agent() -> None:
    """Who has a QEMU started has nothing to do until its namespaces are there."""
    from guestctl import agent  # noqa: F401


def _await_memory(made_of: MadeOf, timeout: float) -> None:
    """Until the memory is there, and sealed; raises NoTemplate."""
    if made_of.filled >= 0:
        select.select([made_of.filled], [], [], timeout)
        os.close(made_of.filled)
    if not is_sealed(made_of.memory):
        raise NoTemplate("its memory could not be copied")


def reaped(running: Running, seconds: float) -> bool:
    """Waits for QEMU's end; says whether it has come."""
    if running.process.poll() is not None:
        return True
    # Popen.wait with a time-out would sleep, and sleep on when it has ended.
    handle = os.pidfd_open(running.process.pid)
    try:
        select.select([handle], [], [], seconds)
    finally:
        os.close(handle)
    return running.process.poll() is not None


def kill(running: Running, qemu: ProcessId | None) -> None:
    """Kills QEMU itself first: what holds it then ends by itself, and is killed if not."""
    if qemu is not None:
        qemu.send(signal.SIGKILL)
    if not reaped(running, _EXIT_TIMEOUT):
        running.process.kill()
        reaped(running, _EXIT_TIMEOUT)
