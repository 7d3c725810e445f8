"""How many tools run at once on this host, for all guests of a user together.

A slot is a file, and whoever holds its lock uses it: a killed process gives it back.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guestctl.errors import OffloadError
from guestctl.places import private_directory
from guestctl.rundir import flocked

__all__ = ["Slots"]

_POLL = 0.003
_DEADLINE = 600.0


class Slots:
    """`count` slots below `runtime`, the user's run directory; default: one a processor."""

    def __init__(self, runtime: Path, count: int = 0) -> None:
        self.count = count or len(os.sched_getaffinity(0))
        self._folder = private_directory(runtime / "slots")

    @contextmanager
    def taken(self) -> Iterator[float]:
        """Holds a slot; gives the seconds that it took to get one. Raises OffloadError."""
        begin = time.monotonic()
        handle = self._take(begin + _DEADLINE)
        try:
            yield time.monotonic() - begin
        finally:
            os.close(handle)

    def free(self) -> int:
        """How many are free at the moment."""
        handles = [flocked(self._folder / str(number)) for number in range(self.count)]
        held = [handle for handle in handles if handle is not None]
        for handle in held:
            os.close(handle)
        return len(held)

    def _take(self, deadline: float) -> int:
        # Everybody waits alike, so that no guest has more than its share in the long run.
        while True:
            for number in random.sample(range(self.count), self.count):
                handle = flocked(self._folder / str(number))
                if handle is not None:
                    return handle
            if time.monotonic() > deadline:
                raise OffloadError("no slot became free")
            time.sleep(_POLL)
