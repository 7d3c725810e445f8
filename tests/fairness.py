"""Limits in seconds that a busy host does not spoil, and deadlines that only tell a hang."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

# Far beyond what anything takes, on a machine however busy.
FOREVER = 120.0
_SAMPLE = 0.02


def until(done: Callable[[], object], seconds: float = FOREVER) -> None:
    """Waits until `done()` is true."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Waits until a process has ended and was reaped; says whether it has."""
    deadline = time.monotonic() + FOREVER
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


class Fair:
    """Measures `seconds`, without those in which a thread of ours, or of the processes `pids`, was
    ready to run and got no processor: on a quiet machine, the time by the clock.

    A thread of ours that wakes later than it wanted has waited too, whatever it was for.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = (os.getpid(), *pids)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._waited = 0.0
        self.seconds = 0.0

    def __enter__(self) -> Fair:
        self._last = self._counts()
        self._begin = self._looked = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._take()
        self.seconds = time.monotonic() - self._begin - self._waited

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE):
            self._take()

    def _take(self) -> None:
        counts = self._counts()
        now = time.monotonic()
        late = now - self._looked - _SAMPLE
        # A thread that ends takes along what it has waited since the last look.
        new = sum(count - self._last.get(thread, 0) for thread, count in counts.items())
        self._waited += max(new / 1e9, late)
        self._last, self._looked = counts, now

    def _counts(self) -> dict[str, int]:
        """What each thread has waited for a processor, in ns, as schedstat counts it."""
        found = {}
        for pid in self._pids:
            try:
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                        found[thread] = int(file.read().split()[1])
            except OSError:
                continue
        return found
