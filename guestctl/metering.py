"""A thread that writes down, now and then, what a guest in use is doing, for others to see."""

from __future__ import annotations

import threading

from guestctl.agent import Agent
from guestctl.errors import GuestctlError
from guestctl.jobs import JobBook
from guestctl.wire import Op

__all__ = ["Meter"]

_INTERVAL = 1.0
_TIMEOUT = 30.0


class Meter:
    """Asks the agent for its memory as long as commands run."""

    def __init__(self, agent: Agent, book: JobBook) -> None:
        self._agent = agent
        self._book = book
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """A second time does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="guestctl-meter", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Does not wait for the thread, which may be waiting for the agent."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(_INTERVAL):
            if not self._book.live:
                continue
            try:
                memory = self._agent.request(Op.STATUS, timeout=_TIMEOUT).memory
            except GuestctlError:
                # Whoever waits for a command is told what has happened.
                memory = ()
            if not self._over.is_set():
                self._book.publish(memory)
