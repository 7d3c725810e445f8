"""How many tools run at once on this host, for all guests of a user together, and elsewhere.

A slot is a file, and whoever holds its lock uses it: a killed process gives it back. A compile host
has slots of its own here, as many as it takes compilations. Who waits holds the lock of one more
file together with all others who do, so that whoever comes sees that it is not the first. A guest
to which others have long left no slot at all gets one more than there are.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guestctl.errors import OffloadError
from guestctl.offload.hosts import CompileHost
from guestctl.places import private_directory
from guestctl.rundir import flocked

__all__ = ["Slot", "Slots"]

_WAITING = "waiting"
_POLL = 0.003
_DEADLINE = 600.0
_PATIENCE = 20.0  # seconds in which a guest without a slot waits for one to become free
_TRIES = 4  # slots elsewhere that are looked at in one turn


@dataclass(frozen=True)
class Slot:
    """A slot that is held: how many seconds it took to get it, and whose it is; None: ours."""

    waited: float
    host: CompileHost | None = None


class Slots:
    """`count` slots below `runtime`, the user's run directory; default: one a processor."""

    def __init__(self, runtime: Path, count: int = 0) -> None:
        self.count = count or len(os.sched_getaffinity(0))
        self._folder = private_directory(runtime / "slots")
        self._own = self._paths(None)
        self._lock = threading.Lock()
        self._held = 0
        self._crowded = False  # the last slot that we got was one more

    @contextmanager
    def taken(self, elsewhere: Sequence[CompileHost] = ()) -> Iterator[Slot]:
        """Holds a slot, of this host or else of one `elsewhere`. Raises OffloadError."""
        begin = time.monotonic()
        handle, host = self._take(begin, elsewhere)
        try:
            yield Slot(time.monotonic() - begin, host)
        finally:
            os.close(handle)
            with self._lock:
                self._held -= 1

    def free(self, host: CompileHost | None = None) -> int:
        """How many are free at the moment, here or of a compile host."""
        handles = [flocked(path) for path in self._paths(host)]
        held = [handle for handle in handles if handle is not None]
        for handle in held:
            os.close(handle)
        return len(held)

    def _paths(self, host: CompileHost | None) -> list[Path]:
        if host is None:
            return [self._folder / str(number) for number in range(self.count)]
        return [self._folder / f"{host.name}.{number}" for number in range(host.limit)]

    def _take(
        self, begin: float, elsewhere: Sequence[CompileHost]
    ) -> tuple[int, CompileHost | None]:
        waiting: int | None = None
        try:
            while True:
                # Everybody waits alike, so that no guest has more than its share in the long run;
                # and whoever gives a slot back and wants it again comes after those who wait.
                if waiting is not None or not self._others_wait():
                    found = self._found(begin, elsewhere)
                    if found is not None:
                        return found
                if time.monotonic() > begin + _DEADLINE:
                    raise OffloadError("no slot became free")
                if waiting is None:
                    waiting = flocked(self._folder / _WAITING, shared=True)
                time.sleep(_POLL)
        finally:
            if waiting is not None:
                os.close(waiting)

    def _found(
        self, begin: float, elsewhere: Sequence[CompileHost]
    ) -> tuple[int, CompileHost | None] | None:
        with self._lock:
            found = self._free_one(elsewhere) or self._one_more(begin)
            self._held += found is not None
            return found

    def _free_one(self, elsewhere: Sequence[CompileHost]) -> tuple[int, CompileHost | None] | None:
        others = [(host, path) for host in elsewhere for path in self._paths(host)]
        here = [(None, path) for path in random.sample(self._own, self.count)]
        there = random.sample(others, min(_TRIES, len(others)))
        for host, path in (*here, *there):
            handle = flocked(path)
            if handle is not None:
                self._crowded = False
                return handle, host
        return None

    def _one_more(self, begin: float) -> tuple[int, CompileHost | None] | None:
        """When all slots are others', and have been for long: what they run may be without end.
        One at a time for a guest, and no more in all than there are slots."""
        if self._held or not (self._crowded or time.monotonic() - begin > _PATIENCE):
            return None
        for number in range(self.count):
            handle = flocked(self._folder / f"{number}+")
            if handle is not None:
                self._crowded = True
                return handle, None
        return None

    def _others_wait(self) -> bool:
        """Somebody does, or looks at this very moment, too."""
        handle = flocked(self._folder / _WAITING)
        if handle is not None:
            os.close(handle)
        return handle is None
