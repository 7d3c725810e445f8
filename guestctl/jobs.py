"""The jobs of a guest, as whoever holds its lease writes them down for others to see.

`jobs.json` in the guest's run directory. Its writer may be killed: then the file stays, and says
what the orphans are that the agent still has.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from guestctl.errors import UsageError
from guestctl.journal import record
from guestctl.rundir import GuestDir, read_json, write_json
from guestctl.spec import Command, Result

__all__ = ["JobBook", "job_name", "parse_job_name", "read_jobs"]


def job_name(guest: str, number: int) -> str:
    """What people call a job: `g0:3`."""
    return f"{guest}:{number}"


def parse_job_name(text: str) -> tuple[str, int]:
    """The guest and the number in a job's name; raises UsageError."""
    guest, colon, number = text.partition(":")
    if not (guest and colon and number.isascii() and number.isdigit()):
        raise UsageError(f"{text!r} is no job", hint="guestctl pool status shows them, as in g0:3")
    return guest, int(number)


def read_jobs(folder: GuestDir) -> dict[str, Any]:
    """What was written down last: `jobs`, `memory`, `since`; empty when nothing runs."""
    return read_json(folder.jobs)


@dataclass
class _Entry:
    facts: dict[str, Any]
    received: Callable[[], int] = int


class JobBook:
    """Written by one process, from any of its threads."""

    def __init__(self, folder: GuestDir) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry] = {}
        self._memory: tuple[int, ...] = ()

    @property
    def live(self) -> bool:
        return bool(self._entries)

    def opened(self, number: int, command: Command, **limits: float | None) -> None:
        """A command is about to start: from here on it may outlive us."""
        facts = {
            "id": number,
            "name": job_name(self._folder.name, number),
            "argv": [os.fsdecode(arg) for arg in command.argv],
            "since": time.time(),
            "tty": command.window is not None,
            **limits,
        }
        with self._lock:
            self._entries[number] = _Entry(facts)
            self._write()
        self._tell("run", facts)

    def taken_over(self, number: int) -> dict[str, Any]:
        """An orphan is ours now; returns the facts that its first holder wrote, if it could."""
        known = read_jobs(self._folder).get("jobs", [])
        facts: dict[str, Any] = {job["id"]: job for job in known}.get(number, {})
        kept = {"id": number, "name": job_name(self._folder.name, number), **facts}
        with self._lock:
            self._entries[number] = _Entry(kept)
            self._write()
        self._tell("attach", kept)
        return facts

    def counted(self, number: int, received: Callable[[], int]) -> None:
        """`received` gives the bytes of output so far."""
        with self._lock:
            if number in self._entries:
                self._entries[number].received = received

    def closed(self, number: int, result: Result | None) -> None:
        """The command has ended; None: nobody knows how."""
        with self._lock:
            entry = self._entries.pop(number, None)
            self._write()
        if entry is not None and result is not None:
            self._tell(
                "exit",
                {
                    **entry.facts,
                    "outcome": result.outcome,
                    "status": result.status,
                    "seconds": round(result.seconds, 3),
                },
            )

    def publish(self, memory: tuple[int, ...] = ()) -> None:
        """Writes the figures down that change: output so far, and the guest's memory."""
        with self._lock:
            self._memory = memory or self._memory
            if self._entries:
                self._write()

    def expire(self) -> None:
        """What an earlier holder has left is gone: its time was over."""
        for job in read_jobs(self._folder).get("jobs", []):
            self._tell("expired", job)
        self.clear()

    def clear(self) -> None:
        """Nothing of ours runs any more."""
        with self._lock:
            self._entries.clear()
            self._write()

    def _write(self) -> None:
        if not self._entries:
            self._folder.jobs.unlink(missing_ok=True)
            return
        jobs = [
            {**entry.facts, "output": entry.facts.get("output", 0) + entry.received()}
            for _number, entry in sorted(self._entries.items())
        ]
        try:
            write_json(self._folder.jobs, {"jobs": jobs, "memory": list(self._memory)})
        except OSError:
            # The run directory is full or gone; the agent knows its jobs all the same.
            return

    def _tell(self, event: str, facts: dict[str, Any]) -> None:
        told = {key: facts[key] for key in ("outcome", "status", "seconds") if key in facts}
        argv = " ".join(facts.get("argv", []))
        record(
            self._folder.journal,
            event,
            guest=self._folder.name,
            job=facts["name"],
            argv=argv,
            **told,
        )
