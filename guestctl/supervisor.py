"""The small process that lives as long as one QEMU: it has it come up, keeps the console's log,
and records how it ended.

What it is given is in guestctl.handover, how it is run in guestctl.separate.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from pathlib import Path

from guestctl.birth import Birth, MadeOf, kill, reaped
from guestctl.errors import GuestctlError
from guestctl.handover import Handover, tell_starter
from guestctl.processes import ProcessId
from guestctl.qemu import monitor
from guestctl.qemu.bounds import limit_resources
from guestctl.rundir import GuestDir, flocked
from guestctl.sockets import connected_socket
from guestctl.spec import GuestSpec
from guestctl.standing import Standing

__all__ = ["Supervisor", "main"]

_GREETING_TIMEOUT = 2.0
_POWEROFF_TIMEOUT = 5.0
_EXIT_TIMEOUT = 3.0


class Supervisor:
    def __init__(self, folder: GuestDir, owner: ProcessId | None, made_of: MadeOf | None) -> None:
        self._folder = folder
        self._made_of = made_of
        self._owner = owner
        self._stop_read, self._stop_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False
        spec = GuestSpec(**folder.spec())
        self._memory = spec.memory
        self._standing = Standing(folder, spec)
        self._birth = Birth(folder, spec, self._standing, lambda: self._stopping)

    def run(self, agent: socket.socket, monitor: socket.socket, notify: int) -> None:
        """The guest's whole life."""
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        limit_resources(self._memory)
        begin = time.monotonic()
        self._standing.tell("booting", None)
        try:
            self._birth.come(agent, monitor, self._made_of)
        except (GuestctlError, OSError) as error:
            cause = self._end(str(error))
            tell_starter(notify, {"error": cause, "console": self._folder.console_tail()})
            return
        seconds = round(time.monotonic() - begin, 3)
        self._standing.tell("ready", self._birth.running, boot_seconds=seconds)
        tell_starter(notify, {"ready": True})
        self._watch()

    def _on_term(self, *_: object) -> None:
        """Only the wait for the guest is broken off; a QEMU half started would be nobody's."""
        os.write(self._stop_write, b"x")
        if self._birth.interruptible:
            self._birth.interruptible = False
            self._stopping = True
            raise GuestctlError("it was stopped")
        self._stopping = True

    # --- life and end -----------------------------------------------------------------------

    def _watch(self) -> None:
        """Until QEMU ends, or somebody asks for it."""
        running = self._birth.running
        assert running is not None
        watched = [os.pidfd_open(running.process.pid), self._stop_read]
        if self._owner is not None:
            watched.append(self._owner.handle())
        ready, _, _ = select.select(watched, [], [])
        if watched[0] not in ready:
            self._stopping = True
            self._power_off()
        self._end("")

    def _power_off(self) -> None:
        """Asks the guest, unless somebody is talking to it.

        One that has no share mounted holds nothing that anybody will ever read again.
        """
        from guestctl.agent import Agent
        from guestctl.wire import Op

        lease = flocked(self._folder.lease)
        if lease is None:
            self._quit()
            return
        try:
            if not self._folder.mounts.exists():
                return
            agent = Agent.connect(
                connected_socket(self._folder.agent),
                timeout=_GREETING_TIMEOUT * self._birth.pace,
                orphan=0,
                orderly=self._folder.take_orderly(),
                starved=self._birth.starved,
            )
            try:
                agent.request(Op.POWEROFF, timeout=_POWEROFF_TIMEOUT * self._birth.pace)
            finally:
                agent.close()
        except (GuestctlError, OSError):
            # It will be ended the hard way.
            return
        finally:
            os.close(lease)
        assert self._birth.running is not None
        reaped(self._birth.running, _EXIT_TIMEOUT)

    def _quit(self) -> None:
        """Has QEMU write out its disks and end, while the agent is another's."""
        assert self._birth.running is not None
        try:
            monitor.execute(self._folder.monitor, "quit", timeout=_EXIT_TIMEOUT)
        except (GuestctlError, OSError):
            return
        reaped(self._birth.running, _EXIT_TIMEOUT)

    def _end(self, cause: str) -> str:
        """Makes sure that QEMU is gone, and records why; returns the cause."""
        running = self._birth.running
        if running is not None:
            # When the guest ended QEMU itself it takes a moment to be gone.
            if not reaped(running, 0.5 if cause and not self._stopping else 0.0):
                cause = cause or "it was stopped"
                kill(running, self._folder.qemu())
            if self._birth.console is not None:
                self._birth.console.close(2)
            known = "it was stopped" if self._stopping else ""
            cause = self._standing.cause(running.process.returncode, known, cause)
        if self._birth.group is not None:
            self._birth.group.remove()
        for path in (self._folder.agent, self._folder.monitor, self._folder.keyboard):
            path.unlink(missing_ok=True)
        state = "stopped" if self._stopping else "lost"
        self._standing.tell(state, running, cause=cause)
        return cause


def main(text: str) -> None:
    """The process's entry; `text` is a Handover."""
    # All that it makes is the user's alone.
    os.umask(0o077)
    given = Handover.load(text)
    made_of = None
    if given.memory >= 0:
        # Opened anew: guests that start together do not share a position in it.
        state = os.open(f"/proc/self/fd/{given.state}", os.O_RDONLY)
        os.close(given.state)
        made_of = MadeOf(given.ident, given.pace, given.memory, given.filled, state, given.scratch)
    owner = ProcessId(given.owner_pid, given.owner_start) if given.owner_pid else None
    supervisor = Supervisor(GuestDir(Path(given.folder)), owner, made_of)
    agent, monitor = (socket.socket(fileno=each) for each in (given.agent, given.monitor))
    supervisor.run(agent, monitor, given.notify)
