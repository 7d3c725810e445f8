"""The small process that stands for one board of a pool, as a supervisor does for a guest.

Run as guestctl.supervisor is. It starts nothing: it joins whoever leases the board with the agent
there.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

from guestctl.agent import Agent
from guestctl.board import Forwarder, read_key, split_address
from guestctl.errors import GuestctlError, RequestFailed
from guestctl.processes import ProcessId
from guestctl.rundir import GuestDir, connected_socket, tell_starter
from guestctl.spec import GuestSpec
from guestctl.wire import Op

__all__ = ["main"]

_TIMEOUT = 30.0


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


def _greet(folder: GuestDir, forwarder: Forwarder) -> None:
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
        raise GuestctlError(forwarder.fault or str(error)) from None


def _wait(leash: list[int]) -> None:
    """Until somebody asks for the end, or the owner is gone."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGTERM, lambda *_: None)
    select.select([read, *leash], [], [])


def main(argv: list[str]) -> None:
    """The process's entry."""
    path, _origin, *numbers = argv
    agent, monitor, notify, leash, _memory, _state = map(int, numbers)
    folder = GuestDir(Path(path))
    spec = GuestSpec(**folder.spec())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # A board has none; a socket that nobody serves would keep whoever asks it waiting.
    os.close(monitor)
    folder.monitor.unlink(missing_ok=True)
    _record(folder, spec, "booting")
    try:
        forwarder = Forwarder(
            split_address(spec.member), read_key(Path(spec.key)), socket.socket(fileno=agent)
        )
        _greet(folder, forwarder)
    except (GuestctlError, OSError) as error:
        _record(folder, spec, "lost", str(error))
        tell_starter(notify, {"error": str(error)})
        return
    _record(folder, spec, "ready")
    tell_starter(notify, {"ready": True})
    _wait([] if leash < 0 else [leash])
    forwarder.close()
    folder.agent.unlink(missing_ok=True)
    _record(folder, spec, "stopped", "it was stopped")


if __name__ == "__main__":
    main(sys.argv[1:])
