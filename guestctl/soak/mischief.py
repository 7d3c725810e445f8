"""What a soak does to a pool from outside, at random: the host's side of what can go wrong."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from guestctl.rundir import GuestDir
from guestctl.sockets import connected_socket

__all__ = ["MISCHIEF"]

_HOLD = 2.0
_ORPHAN = "1"
_WAIT = 60.0


def _signal(number: signal.Signals) -> Callable[[GuestDir, random.Random], None]:
    def strike(folder: GuestDir, rng: random.Random) -> None:
        qemu = folder.qemu()
        if qemu is not None:
            qemu.send(number)

    return strike


def _supervisor(folder: GuestDir, rng: random.Random) -> None:
    supervisor = folder.supervisor()
    if supervisor is not None:
        supervisor.send(signal.SIGKILL)


def _pause(folder: GuestDir, rng: random.Random) -> None:
    """For less time than makes it hung: nobody may notice.

    One that was stopped for good stays so: woken just before its command's idle time-out, that
    command would have it, which is no outcome that was known beforehand.
    """
    qemu = folder.qemu()
    if qemu is not None and not qemu.stopped() and qemu.send(signal.SIGSTOP):
        time.sleep(rng.uniform(0.1, _HOLD))
        qemu.send(signal.SIGCONT)


def _monitor(folder: GuestDir, rng: random.Random) -> None:
    """Somebody has the monitor and says nothing, as if it were dead."""
    with suppress(OSError):
        held: socket.socket = connected_socket(folder.monitor)
        closing = threading.Timer(rng.uniform(0.5, 5.0), held.close)
        closing.daemon = True
        closing.start()


def _controller(folder: GuestDir, rng: random.Random) -> None:
    """A command line is killed somewhere between its start and its end."""
    argv = [sys.executable, "-P", "-m", "guestctl", "run", "--name", folder.path.parent.name]
    argv += ["--orphan-timeout", _ORPHAN, "--lease-timeout", "30"]
    argv += ["--", "sh", "-c", "echo x; sleep 3; echo y"]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            process.wait(rng.uniform(0.0, 4.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_WAIT)


# What it is called, and how often it is done, against the others.
MISCHIEF: dict[str, tuple[Callable[[GuestDir, random.Random], None], int]] = {
    "QEMU killed": (_signal(signal.SIGKILL), 6),
    "QEMU crashed": (_signal(signal.SIGSEGV), 3),
    "QEMU stopped": (_signal(signal.SIGSTOP), 2),
    "QEMU paused": (_pause, 3),
    "supervisor killed": (_supervisor, 4),
    "monitor taken": (_monitor, 3),
    "controller killed": (_controller, 4),
}
