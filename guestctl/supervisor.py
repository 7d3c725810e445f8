"""The small process that lives as long as one QEMU: it starts it, boots the guest, keeps the
console's log, and records how it ended.

Run as `python -m guestctl.supervisor FOLDER ORIGIN AGENT MONITOR NOTIFY LEASH MEMORY STATE` with
descriptors: two listening sockets, a pipe on which one line of JSON says that the guest is ready or
why not, one whose other end its owner holds (when the owner is gone, the guest has no reason to
stay), and what a clone is made of, which ORIGIN names; -1 for what is not there.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guestctl.agent import Agent
from guestctl.bridge import Bridge, bridged
from guestctl.console import ConsoleKeeper
from guestctl.errors import GuestctlError
from guestctl.journal import record
from guestctl.patience import Patience
from guestctl.processes import ProcessId, children, processor_time
from guestctl.qemu.bounds import Group, group_for, limit_resources
from guestctl.qemu.confine import Confinement
from guestctl.qemu.machine import Machine
from guestctl.qemu.spawn import Running, scratch_disk, spawn
from guestctl.rundir import GuestDir, bound_socket, connected_socket, flocked, tell_starter
from guestctl.spec import GuestSpec
from guestctl.targets import target
from guestctl.template import Template, load
from guestctl.wire import Op, Tag

__all__ = ["Supervisor", "main"]

_SEED_BYTES = 256
_GREETING_TIMEOUT = 2.0
_POWEROFF_TIMEOUT = 5.0
_EXIT_TIMEOUT = 3.0
# What a guest may be slower than usual before its time-outs follow, and how far they do.
_PACE_NOISE = 1.5
_PACE_MOST = 20.0
# A clone takes a tenth of a second; where it takes this long it will never come.
_CLONE_TIMEOUT = 20.0
# What the console says, and what that means.
_CAUSES = (
    (b"Kernel panic", "its kernel panicked"),
    (b"guestctl: agent died", "its agent died"),
    (b"guestctl: clean stop", "it was powered off"),
)
# States that have another name as events.
_EVENTS = {"booting": "boot"}


@dataclass(frozen=True)
class MadeOf:
    """What a clone is made of: descriptors of a template's memory and state."""

    ident: str
    memory: int
    state: int


class Supervisor:
    def __init__(self, folder: GuestDir, leash: int | None, made_of: MadeOf | None) -> None:
        self._folder = folder
        self._made_of = made_of
        self._leash = leash
        self._spec = GuestSpec(**folder.spec())
        self._state: dict[str, Any] = {"name": folder.name, "arch": self._spec.arch}
        self._stop_read, self._stop_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False
        self._interruptible = False
        self._told = ""
        self._pace = 1.0
        self._running: Running | None = None
        self._group: Group | None = None
        self._console: ConsoleKeeper | None = None
        self._bridge: Bridge | None = None

    def run(self, agent: socket.socket, monitor: socket.socket, notify: int) -> None:
        """The guest's whole life."""
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        limit_resources(self._spec.memory)
        begin = time.monotonic()
        self._record("booting")
        try:
            self._start(agent, monitor)
        except (GuestctlError, OSError) as error:
            cause = self._end(str(error))
            tell_starter(notify, {"error": cause, "console": self._folder.console_tail()})
            return
        self._record("ready", boot_seconds=round(time.monotonic() - begin, 3))
        tell_starter(notify, {"ready": True})
        self._watch()

    def _on_term(self, *_: object) -> None:
        """Only the wait for the guest is broken off; a QEMU half started would be nobody's."""
        os.write(self._stop_write, b"x")
        if self._interruptible:
            self._interruptible = False
            self._stopping = True
            raise GuestctlError("it was stopped")
        self._stopping = True

    # --- start ------------------------------------------------------------------------------

    def _start(self, agent: socket.socket, monitor: socket.socket) -> None:
        """Makes the guest a clone, or boots it where that is not possible."""
        spec, made_of = self._spec, self._made_of
        if made_of is not None:
            template = Template(Path(spec.template))
            shutil.copyfile(template.console, self._folder.boot_console)
            try:
                self._bring_up(agent, monitor, made_of, min(spec.boot_timeout, _CLONE_TIMEOUT))
            except (GuestctlError, OSError) as error:
                if self._stopping:
                    raise
                reason = f"a clone did not come: {self._unstarted(str(error))}"
                template.blame(reason)
                self._made_of = None
                self._state["start_reason"] = reason
                agent, monitor = (
                    bound_socket(path) for path in (self._folder.agent, self._folder.monitor)
                )
            else:
                template.prove()
                self._state.update(
                    start="clone", start_reason="", origin=made_of.ident, memory_fd=made_of.memory
                )
                return
        self._bring_up(agent, monitor, None, spec.boot_timeout)
        self._state["start"] = "cold"
        self._state.setdefault("start_reason", spec.cold)

    def _bring_up(
        self, agent: socket.socket, monitor: socket.socket, made_of: MadeOf | None, timeout: float
    ) -> None:
        self._spawn(agent, monitor, made_of)
        self._interruptible = True
        if self._stopping:
            raise GuestctlError("it was stopped")
        if made_of is not None:
            load(self._folder.monitor, made_of.state)
        self._boot(timeout)
        self._interruptible = False

    def _unstarted(self, cause: str) -> str:
        """Removes a QEMU that did not become a clone; returns why not."""
        self._interruptible = False
        if self._running is not None:
            if _reaped(self._running, 0.5):
                cause = self._exit_cause(self._running.process.returncode, cause)
            else:
                _kill(self._running, self._folder.qemu())
            if self._console is not None:
                self._console.close(2)
            self._running = None
        for path in (self._folder.agent, self._folder.monitor):
            path.unlink(missing_ok=True)
        return cause

    def _spawn(self, agent: socket.socket, monitor: socket.socket, made_of: MadeOf | None) -> None:
        spec = self._spec
        confinement = Confinement(spec.namespaces, reason=spec.unconfined_reason)
        scratch = scratch_disk(Path(spec.scratch_folder), spec.scratch)
        self._bridge, agent = bridged(spec.channel, agent)
        with open(self._folder.path / "qemu.log", "wb") as log, agent, monitor:
            self._running = spawn(
                replace(Machine.of(spec), saving="load" if made_of else ""),
                confinement,
                agent=agent,
                monitor=monitor,
                scratch=scratch,
                log=log.fileno(),
                ram=made_of.memory if made_of else -1,
                state=made_of.state if made_of else -1,
            )
        pids = {self._running.process.pid, *children(self._running.process.pid), self._running.pid}
        name = f"{self._folder.path.parent.name}-{spec.name}-{os.getpid()}"
        self._group = group_for(sorted(pids - {0}), name, spec.memory)
        # Our copies are closed now, so that QEMU's end is seen as the sockets' end.
        os.close(scratch)
        self._folder.keyboard.unlink(missing_ok=True)
        self._console = ConsoleKeeper(
            self._running.console, self._folder.console, bound_socket(self._folder.keyboard)
        )
        self._console.start()
        self._record("booting")

    def _boot(self, timeout: float) -> None:
        """Waits for the agent and makes the guest usable; raises GuestLost."""
        patience = Patience(timeout, starved=self._starved)
        agent = Agent.connect(
            connected_socket(self._folder.agent),
            timeout=timeout,
            orphan=0,
            starved=self._starved,
        )
        try:
            before = self._processor_time()[0]
            agent.request(
                Op.PREPARE,
                (
                    (Tag.CLOCK, time.time_ns().to_bytes(8, "little")),
                    (Tag.SEED, os.urandom(_SEED_BYTES)),
                    (Tag.HOSTNAME, self._spec.hostname.encode()),
                    (Tag.SWAP, self._spec.swap.to_bytes(4, "little")),
                ),
                timeout=max(1.0, patience.left() or 0.0),
            )
            self._measure(self._processor_time()[0] - before)
        finally:
            agent.close()

    def _measure(self, seconds: float) -> None:
        """Settles how many times slower than usual the guest is, by what PREPARE has cost it.

        In processor time, so that a busy host does not count twice: that is `starved`'s part.
        """
        usual = target(self._spec.arch).prepare_seconds
        slower = seconds / usual if usual else 1.0
        self._pace = 1.0 if slower < _PACE_NOISE else round(min(slower, _PACE_MOST), 2)
        self._state["pace"] = self._pace
        self._state["prepare_seconds"] = round(seconds, 4)

    def _processor_time(self) -> tuple[float, float]:
        return processor_time(self._running.pid) if self._running else (0.0, 0.0)

    def _starved(self) -> float:
        """For how long the guest has waited for a processor."""
        return self._processor_time()[1]

    # --- life and end -----------------------------------------------------------------------

    def _watch(self) -> None:
        """Until QEMU ends, or somebody asks for it."""
        running = self._running
        assert running is not None
        handle = os.pidfd_open(running.process.pid)
        try:
            leash = [] if self._leash is None else [self._leash]
            ready, _, _ = select.select([handle, self._stop_read, *leash], [], [])
        finally:
            os.close(handle)
        if handle not in ready:
            self._stopping = True
            self._power_off()
        self._end("")

    def _power_off(self) -> None:
        """Asks the guest, unless somebody is talking to it."""
        lease = flocked(self._folder.lease)
        if lease is None:
            self._quit()
            return
        try:
            agent = Agent.connect(
                connected_socket(self._folder.agent),
                timeout=_GREETING_TIMEOUT * self._pace,
                orphan=0,
                starved=self._starved,
            )
            try:
                agent.request(Op.POWEROFF, timeout=_POWEROFF_TIMEOUT * self._pace)
            finally:
                agent.close()
        except (GuestctlError, OSError):
            # It will be ended the hard way.
            return
        finally:
            os.close(lease)
        assert self._running is not None
        _reaped(self._running, _EXIT_TIMEOUT)

    def _quit(self) -> None:
        """Has QEMU write out its disks and end, while the agent is another's."""
        from guestctl.qemu import monitor  # asyncio, which nobody waits for at the start

        assert self._running is not None
        try:
            monitor.execute(self._folder.monitor, "quit", timeout=_EXIT_TIMEOUT)
        except (GuestctlError, OSError):
            return
        _reaped(self._running, _EXIT_TIMEOUT)

    def _end(self, cause: str) -> str:
        """Makes sure that QEMU is gone, and records why; returns the cause."""
        running = self._running
        if running is not None:
            # When the guest ended QEMU itself it takes a moment to be gone.
            if not _reaped(running, 0.5 if cause and not self._stopping else 0.0):
                cause = cause or "it was stopped"
                _kill(running, self._folder.qemu())
            if self._console is not None:
                self._console.close(2)
            cause = self._exit_cause(running.process.returncode, cause)
        if self._group is not None:
            self._group.remove()
        for path in (self._folder.agent, self._folder.monitor, self._folder.keyboard):
            path.unlink(missing_ok=True)
        self._record("stopped" if self._stopping else "lost", cause=cause)
        return cause

    def _exit_cause(self, status: int | None, cause: str) -> str:
        if status is None:
            return "QEMU was killed and does not end"
        known = "it was stopped" if self._stopping else self._folder.condemnation()
        if known:
            return known
        tail = self._folder.console_tail().encode()
        for mark, meaning in _CAUSES:
            if mark in tail:
                return meaning
        number = -status if status < 0 else status - 128 if status > 128 else 0
        if number:
            return f"QEMU was ended by signal {number}"
        if status:
            log = (self._folder.path / "qemu.log").read_text(errors="replace").strip()
            last = log.splitlines()[-1] if log else "it said nothing"
            return f"QEMU failed with status {status}: {last}"
        return cause or "QEMU ended"

    def _record(self, state: str, **facts: Any) -> None:
        spec = self._spec
        self._state.update(
            state=state,
            since=time.time(),
            accelerator=spec.accelerator,
            cpu=spec.cpu,
            memory=spec.memory,
            confinement={
                "seccomp": True,
                "namespaces": spec.namespaces,
                "reason": spec.unconfined_reason,
                "group": str(self._group.folder) if self._group else "",
            },
            **facts,
        )
        for name, pid in (
            ("supervisor", os.getpid()),
            ("qemu", self._running.pid if self._running else 0),
            ("holder", self._running.process.pid if self._running else 0),
        ):
            try:
                known = ProcessId.of(pid)
            except ProcessLookupError:
                continue
            self._state[f"{name}_pid"] = known.pid
            self._state[f"{name}_start"] = known.start
        self._folder.write_state(self._state)
        if state != self._told:
            self._told = state
            told = {name: facts[name] for name in ("cause", "boot_seconds") if facts.get(name)}
            record(self._folder.journal, _EVENTS.get(state, state), guest=spec.name, **told)


def _reaped(running: Running, seconds: float) -> bool:
    """Waits for QEMU's end; says whether it has come."""
    try:
        running.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(running: Running, qemu: ProcessId | None) -> None:
    """Kills QEMU itself first: what holds it then ends by itself, and is killed if not."""
    if qemu is not None:
        qemu.send(signal.SIGKILL)
    if not _reaped(running, _EXIT_TIMEOUT):
        running.process.kill()
        _reaped(running, _EXIT_TIMEOUT)


def main(argv: list[str]) -> None:
    """The process's entry."""
    # All that it makes is the user's alone.
    os.umask(0o077)
    folder, ident, *numbers = argv
    agent, monitor, notify, leash, memory, state = map(int, numbers)
    made_of = None
    if memory >= 0:
        # Opened anew: guests that start together do not share a position in it.
        made_of = MadeOf(ident, memory, os.open(f"/proc/self/fd/{state}", os.O_RDONLY))
        os.close(state)
    supervisor = Supervisor(GuestDir(Path(folder)), None if leash < 0 else leash, made_of)
    supervisor.run(socket.socket(fileno=agent), socket.socket(fileno=monitor), notify)


if __name__ == "__main__":
    main(sys.argv[1:])
