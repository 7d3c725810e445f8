"""Processes that others have started: a pid with its start time, so that reuse is noticed."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass

__all__ = ["ProcessId", "children", "processor_time", "started_with"]


@dataclass(frozen=True)
class ProcessId:
    """A process for certain: `start` is field 22 of /proc/PID/stat, in clock ticks since boot."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Raises ProcessLookupError when there is none."""
        return cls(pid, _start_of(pid))

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        try:
            return _start_of(self.pid) == self.start and _state_of(self.pid) != "Z"
        except ProcessLookupError:
            return False

    def stopped(self) -> bool:
        """Whether it does not run because a signal has stopped it."""
        try:
            return self.alive() and _state_of(self.pid) == "T"
        except ProcessLookupError:
            return False

    def send(self, number: signal.Signals) -> bool:
        """Signals it, unless it is gone; says whether it was there."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True

    def handle(self) -> int:
        """A new descriptor that is readable when it has ended; the caller closes it."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            handle = -1
        if handle >= 0 and self.alive():
            return handle
        if handle >= 0:
            os.close(handle)
        # Readable at once, as the end of a file is.
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def wait(self, seconds: float) -> bool:
        """Waits until it has ended; says whether it has."""
        deadline = time.monotonic() + seconds
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            while self.alive():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                select.select([handle], [], [], left)
        finally:
            os.close(handle)
        return True


def children(pid: int) -> list[int]:
    """The pids of the children of `pid`'s first thread."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def started_with(variable: str) -> list[ProcessId]:
    """This user's processes that were started with `variable`, as in NAME=value, in their
    environment: what finds them when nobody has written down their pids.
    """
    wanted, found = os.fsencode(variable), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid != os.getuid():
                continue
            known = ProcessId.of(int(name))
            with open(f"/proc/{name}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(known)
        except OSError:
            continue
    return found


def processor_time(pid: int) -> tuple[float, float]:
    """Seconds that `pid`'s busiest thread had a processor, and that it waited for one.

    As /proc/PID/task/TID/schedstat counts them (Documentation/scheduler/sched-stats.rst). A QEMU's
    busiest thread is the one that is its guest's processor. Zeros where the process is gone, or the
    kernel does not count.
    """
    busiest = (0, 0)
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                ran, waited, _slices = file.read().split()
            busiest = max(busiest, (int(ran), int(waited)))
    except (OSError, ValueError):
        return 0.0, 0.0
    return busiest[0] / 1e9, busiest[1] / 1e9


def _stat_fields(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    # The name stands in parentheses and may hold anything, parentheses too.
    return text[text.rindex(")") + 2 :].split()


def _start_of(pid: int) -> int:
    return int(_stat_fields(pid)[19])


def _state_of(pid: int) -> str:
    return _stat_fields(pid)[0]
