"""What a soak has found."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Report"]


@dataclass
class Report:
    """Written by all workers of a soak. Times in seconds."""

    seed: int
    guests: int
    seconds: float = 0.0
    jobs: Counter[str] = field(default_factory=Counter)
    mischief: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    replaced: int = 0
    # Jobs that never came to their outcome, and such that only said so.
    lost: list[str] = field(default_factory=list)
    false: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    leases: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def good(self) -> bool:
        return not (self.lost or self.false or self.leaks)

    def done(self, what: str) -> None:
        with self._lock:
            self.jobs[what] += 1

    def struck(self, what: str) -> None:
        with self._lock:
            self.mischief[what] += 1

    def lost_guest(self, cause: str) -> None:
        """One job's guest is gone; `cause` without what differs from one to the other."""
        with self._lock:
            self.losses[cause] += 1

    def timed(self, kind: list[float], seconds: float) -> None:
        with self._lock:
            kind.append(seconds)

    def as_json(self) -> dict[str, Any]:
        total = sum(self.jobs.values())
        return {
            "seed": self.seed,
            "guests": self.guests,
            "seconds": round(self.seconds, 1),
            "jobs": total,
            "jobs_per_second": round(total / self.seconds, 2) if self.seconds else 0.0,
            "lease_p50": _percentile(self.leases, 50),
            "lease_p99": _percentile(self.leases, 99),
            "run_p50": _percentile(self.runs, 50),
            "run_p99": _percentile(self.runs, 99),
            "guests_lost": sum(self.losses.values()),
            "guests_replaced": self.replaced,
            "jobs_lost": self.lost,
            "falsely_successful": self.false,
            "leaks": self.leaks,
            "kinds": dict(self.jobs.most_common()),
            "mischief": dict(self.mischief.most_common()),
            "causes": dict(self.losses.most_common()),
        }


def _percentile(values: list[float], percent: int) -> float:
    """By the nearest rank; 0 where there is none."""
    ranked = sorted(values)
    return round(ranked[min(len(ranked) - 1, len(ranked) * percent // 100)], 4) if ranked else 0.0
