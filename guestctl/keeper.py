"""The small process that stands for one board of a pool, as a supervisor does for a guest.

Run as guestctl.supervisor is. It starts nothing: it joins whoever leases the board with the agent
there, over the network or a serial device.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from guestctl.agent import Agent
from guestctl.board import Forwarder, read_key, split_address
from guestctl.device import Device, DeviceAddress
from guestctl.errors import GuestctlError, RequestFailed
from guestctl.handover import Handover, tell_starter
from guestctl.journal import record
from guestctl.processes import ProcessId
from guestctl.rundir import GuestDir
from guestctl.sockets import connected_socket
from guestctl.spec import DEVICE, GuestSpec
from guestctl.wire import Op

__all__ = ["main"]

_TIMEOUT = 30.0
# States that have another name as events.
_EVENTS = {"booting": "boot"}


def _record(folder: GuestDir, spec: GuestSpec, state: str, cause: str = "") -> None:
    me = ProcessId.of(os.getpid())
    folder.write_state(
        {
            "name": folder.name,
            "arch": spec.arch,
            "state": state,
            "since": time.time(),
            "cause": cause,
            "accelerator": spec.accelerator,
            "supervisor_pid": me.pid,
            "supervisor_start": me.start,
        }
    )
    told = {"cause": cause} if cause else {}
    record(folder.journal, _EVENTS.get(state, state), guest=folder.name, **told)


def _joined(
    spec: GuestSpec, listening: socket.socket, ended: Callable[[str], None]
) -> Forwarder | Device:
    """Whoever connects to `listening` reaches the board from here on; raises GuestctlError."""
    if spec.member.startswith(DEVICE):
        return Device(DeviceAddress.parse(spec.member), listening, ended)
    return Forwarder(split_address(spec.member), read_key(Path(spec.key)), listening)


def _greet(folder: GuestDir, way: Forwarder | Device) -> None:
    """Makes sure that an agent is there, and that it takes commands; raises GuestctlError."""
    try:
        agent = Agent.connect(
            connected_socket(folder.agent), timeout=_TIMEOUT, orphan=0, hangs_up=False
        )
        try:
            agent.request(Op.PREPARE, timeout=_TIMEOUT)
        except RequestFailed as error:
            if error.errno != errno.EALREADY:
                raise
        finally:
            agent.close()
    except GuestctlError as error:
        raise GuestctlError(way.fault or str(error)) from None


class _End:
    """Comes when somebody asks for it, the owner is gone, or the way to the board is."""

    def __init__(self) -> None:
        self.why = ""
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write)
        signal.signal(signal.SIGTERM, lambda *_: None)

    def come(self, why: str) -> None:
        self.why = why
        os.write(self._write, b"x")

    def wait(self, owner: ProcessId | None) -> None:
        select.select([self._read, owner.handle()] if owner else [self._read], [], [])


def main(text: str) -> None:
    """The process's entry; `text` is a Handover."""
    given = Handover.load(text)
    folder = GuestDir(Path(given.folder))
    spec = GuestSpec(**folder.spec())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # A board has none; a socket that nobody serves would keep whoever asks it waiting.
    os.close(given.monitor)
    folder.monitor.unlink(missing_ok=True)
    _record(folder, spec, "booting")
    end = _End()
    try:
        way = _joined(spec, socket.socket(fileno=given.agent), end.come)
        _greet(folder, way)
    except (GuestctlError, OSError) as error:
        _record(folder, spec, "lost", str(error))
        tell_starter(given.notify, {"error": str(error)})
        return
    _record(folder, spec, "ready")
    tell_starter(given.notify, {"ready": True})
    end.wait(ProcessId(given.owner_pid, given.owner_start) if given.owner_pid else None)
    way.close()
    folder.agent.unlink(missing_ok=True)
    _record(folder, spec, "lost" if end.why else "stopped", end.why or "it was stopped")
