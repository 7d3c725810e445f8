"""A process of its own for a supervisor: a new interpreter, or a fork of this one.

A new one is always possible, and takes a twentieth of a second. A fork takes a few milliseconds and
shares its memory with the others, but keeps all that its parent holds in memory: it is for the
command line, which has no threads yet when it starts guests, and nothing else in it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from guestctl.handover import Handover

__all__ = ["can_fork", "new_interpreter", "reap", "run_anew", "run_forked"]

_PACKAGES = str(Path(__file__).parent.parent)
# -I and -S: neither the caller's folder and variables nor what site adds are wanted, and they take
# time; so it has to be told where this package is. What is not listed may need others' packages.
_BARE = ("guestctl.supervisor", "guestctl.spares")
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); import {module}; {module}.main(sys.argv[2])"
# Children of this process that have not been reaped yet.
_forks: set[int] = set()
_others: list[subprocess.Popen[bytes]] = []


def can_fork() -> bool:
    """Whether this process has a single thread: only then is a fork of it whole."""
    return len(os.listdir("/proc/self/task")) == 1


def new_interpreter(module: str, argument: str) -> list[str]:
    """The argv that has a new interpreter call `module`'s main."""
    code = _CODE.format(module=module)
    site = ["-S"] if module in _BARE else []
    return [sys.executable, "-I", *site, "-c", code, _PACKAGES, argument]


def run_anew(module: str, given: Handover, log: int) -> None:
    """Runs `module`'s main in a new interpreter, with its output to descriptor `log`."""
    reap()
    made = subprocess.Popen(
        new_interpreter(module, given.dump()),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=given.descriptors,
        # A session of its own: the terminal's Ctrl-C is not for it.
        start_new_session=True,
        cwd="/",
    )
    _others.append(made)


def reap() -> None:
    """Lets go of children that have ended."""
    _others[:] = [other for other in _others if other.poll() is None]
    for pid in list(_forks):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                continue
        _forks.discard(pid)


def run_forked(module: str, given: Handover, log: int) -> None:
    """Runs `module`'s main in a fork of this process, which shares nothing with it but memory."""
    reap()
    main = importlib.import_module(module).main
    # No handler of ours may run in the child.
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _begin(main, given, log)
        _forks.add(pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin(main: object, given: Handover, log: int) -> NoReturn:
    """What the child does, and all that it does."""
    status = 1
    try:
        # What there is belongs to the parent; none of it is ever collected, or written to for that.
        gc.freeze()
        os.setsid()
        os.chdir("/")
        nothing = os.open("/dev/null", os.O_RDONLY)
        for number, source in enumerate((nothing, log, log)):
            os.dup2(source, number)
        _close_others(set(given.descriptors) | {0, 1, 2})
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _rename(f"guestctl-supervisor {given.folder}")
        assert callable(main)
        main(given.dump())
        status = 0
    except BaseException:
        import traceback  # which a supervisor that ends well never needs

        with contextlib.suppress(Exception):
            os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(status)


def _close_others(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _rename(title: str) -> None:
    """What ps shows would be the command line of the parent otherwise, which has ended long ago."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/comm", "wb", buffering=0) as comm:
            comm.write(b"guestctl-sup")
        with open("/proc/self/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        # Fields 48 and 49 of proc_pid_stat(5): where the arguments are.
        begin, end = int(fields[45]), int(fields[46])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(begin)
            memory.write(title.encode()[: end - begin - 1].ljust(end - begin, b"\0"))
