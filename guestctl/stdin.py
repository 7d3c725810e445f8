"""The stdin of a command in a guest, from the caller's side."""

from __future__ import annotations

import threading
from collections.abc import Callable

from guestctl.agent import Agent
from guestctl.errors import GuestLost
from guestctl.job import Job
from guestctl.streams import Source

__all__ = ["StdinWriter"]

_CHUNK = 1 << 16


class StdinWriter:
    """The stdin of a process started with `stdin=PIPE`. `write` waits while the command does not
    read; what it does not read any more is dropped."""

    def __init__(self, agent: Agent, job: Job) -> None:
        self._agent = agent
        self._job = job

    def write(self, data: bytes, *, timeout: float | None = None) -> int:
        """Sends all of `data`; raises TimeoutError after `timeout` seconds, or GuestLost."""
        self._agent.write(self._job, data, timeout=timeout)
        return len(data)

    def close(self) -> None:
        self._agent.end_stdin(self._job)

    def feed(self, source: bytes | Source | None, unreadable: Callable[[], None]) -> None:
        """Has a thread write all of `source` and then close; None: closes now.

        `unreadable` is called by the thread where `source` cannot be read: that must not look like
        its end.
        """
        if source is None:
            self.close()
        else:
            threading.Thread(target=self._feed, args=(source, unreadable), daemon=True).start()

    def _feed(self, source: bytes | Source, unreadable: Callable[[], None]) -> None:
        try:
            if isinstance(source, bytes):
                self._agent.write(self._job, source)
            else:
                read = getattr(source, "read1", source.read)
                while data := read(_CHUNK):
                    if not self._agent.write(self._job, data):
                        return
            self.close()
        except GuestLost:
            # Whoever waits for the command is told.
            return
        except (OSError, ValueError):
            unreadable()
