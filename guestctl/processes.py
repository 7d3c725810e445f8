"""Processes that others have started: a pid with its start time, so that reuse is noticed."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass

__all__ = ["ProcessId", "children"]


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
