"""Time-outs that fit emulation: only time in which the guest could run counts.

On a busy host a guest waits for a processor most of the time, and a limit in plain seconds would
kill what only was not let run. `starved` says how long it has waited so far; see
docs/decisions/0043-time-outs.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Patience", "never_starved", "pace_of"]

# However starved the guest was, a wait is at most so many times as long: every wait has an end.
MOST = 10.0
# What a guest may be slower than usual before its time-outs follow, and how far they do.
_PACE_NOISE = 1.5
_PACE_MOST = 20.0
# How old a sample may be when output sets the time-out back.
_RESAMPLE = 1.0


def never_starved() -> float:
    """For waits that have no guest to ask."""
    return 0.0


def pace_of(seconds: float, usual: float) -> float:
    """How many times slower than usual a guest is that took `seconds` for what usually takes
    `usual`, where that is known; little things do not count.

    In processor time, so that a busy host does not count twice: that is `starved`'s part.
    """
    slower = seconds / usual if usual else 1.0
    return 1.0 if slower < _PACE_NOISE else round(min(slower, _PACE_MOST), 2)


class Patience:
    """One time-out of `seconds`, or none. `starved` gives the seconds that the guest has waited for
    a processor, as a count that grows."""

    def __init__(
        self, seconds: float | None, *, starved: Callable[[], float] = never_starved
    ) -> None:
        self.seconds = seconds
        self._starved = starved
        self._begin = self._sampled = time.monotonic()
        self._count = 0.0 if seconds is None else starved()
        self._forgiven = 0.0

    def restart(self) -> None:
        """Counts from now on: a sign of life has come."""
        if self.seconds is None:
            return
        self._begin = time.monotonic()
        self._forgiven = 0.0
        if self._begin - self._sampled > _RESAMPLE:
            self._missed()

    def left(self) -> float | None:
        """Seconds to wait before asking again; 0: it is over; None: there is no limit."""
        if self.seconds is None:
            return None
        if self._remaining() <= 0:
            self._forgiven += self._missed()
            self._forgiven = min(self._forgiven, self.seconds * (MOST - 1))
        return max(0.0, self._remaining())

    def over(self) -> bool:
        return self.left() == 0.0

    def awaits(
        self,
        done: Callable[[], object],
        changed: threading.Condition,
        check: Callable[[], None] = lambda: None,
    ) -> bool:
        """Waits on `changed`, whose lock the caller holds, until `done`; False: it is over.

        `check` is called before each wait, and raises what ends it otherwise.
        """
        while not done():
            check()
            left = self.left()
            if left == 0:
                return False
            changed.wait(left)
        return True

    def _remaining(self) -> float:
        assert self.seconds is not None
        return self._begin + self.seconds + self._forgiven - time.monotonic()

    def _missed(self) -> float:
        """The seconds of starvation since the last sample."""
        self._sampled = time.monotonic()
        before, self._count = self._count, self._starved()
        return max(0.0, self._count - before)
