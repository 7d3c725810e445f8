"""What a ledger says of single builds: where the time of a guest's command went. Pure.

A build is a command that was run in a guest and called tools that offload stands for.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from guestctl.offload.ledger import Entry, JobRecord, saved

__all__ = ["PARTS", "Build", "builds_of", "split"]

PARTS = ("configure", "compile", "link", "9p", "other")
_PART_OF = {
    "configure": "configure",
    "compile": "compile",
    "assemble": "compile",
    "preprocess": "compile",
    "link": "link",
    "archive": "link",
}
# Asked of a compiler at any time, and by configure scripts all the while.
_NEUTRAL = frozenset(("ask", "other"))


@dataclass(frozen=True)
class Build:
    """One command and its calls. Times in seconds; `parts` add up to `seconds`.

    `configure` is the time of what a configure script tries and of all that lies between two
    tries; `compile` and `link` that in which such calls were waited for; `9p` what of all these
    went into files on the share, theirs and those pending before; `other` the rest: make, shells,
    and programs of the build's own. Where calls overlap each counts for its share.
    """

    name: str
    command: list[str]
    status: int
    begin: float
    seconds: float
    calls: int
    local: int
    saved: float
    parts: dict[str, float]
    reasons: list[tuple[str, int]]

    @property
    def percent_accelerated(self) -> float:
        return 100 * (self.calls - self.local) / self.calls if self.calls else 0.0

    def as_json(self) -> dict[str, Any]:
        """As `offload report --json` prints it."""
        facts = asdict(self)
        facts["reasons"] = [{"reason": text, "calls": n} for text, n in self.reasons]
        return {**facts, "percent_accelerated": self.percent_accelerated}


def builds_of(entries: Iterable[Entry], jobs: Iterable[JobRecord]) -> list[Build]:
    """The builds of a ledger whose command has ended, in the order of their beginning."""
    calls: dict[tuple[str, float, int], list[Entry]] = {}
    for entry in entries:
        calls.setdefault((entry.guest, entry.session, entry.job), []).append(entry)
    made = []
    for job in sorted(jobs, key=lambda job: job.begin):
        own = calls.get((job.guest, job.session, job.job), [])
        local = [entry for entry in own if entry.where == "guest"]
        made.append(
            Build(
                name=f"{job.guest}:{job.job}",
                command=job.argv,
                status=job.status,
                begin=job.begin,
                seconds=job.seconds,
                calls=len(own),
                local=len(local),
                saved=saved(own),
                parts=split(own, job.begin, job.begin + job.seconds),
                reasons=Counter(entry.reason for entry in local if entry.reason).most_common(5),
            )
        )
    return made


def split(entries: Sequence[Entry], begin: float, end: float) -> dict[str, float]:
    """The time from `begin` to `end` by PARTS."""
    ordered = sorted(entries, key=lambda entry: entry.begin)
    tries = _tries(ordered)
    parts = dict.fromkeys(PARTS, 0.0)
    running: list[tuple[float, int]] = []  # ends, and which
    at = begin
    for number, entry in enumerate(ordered):
        at = _pass(ordered, running, tries, parts, at, min(max(entry.begin, begin), end))
        heapq.heappush(running, (entry.begin + entry.seconds, number))
    _pass(ordered, running, tries, parts, at, end)
    return {name: round(seconds, 6) for name, seconds in parts.items()}


def _pass(
    entries: Sequence[Entry],
    running: list[tuple[float, int]],
    tries: Sequence[tuple[float, float]],
    parts: dict[str, float],
    at: float,
    to: float,
) -> float:
    """Gives the time up to `to` to what was running, or to what a gap belongs to."""
    while at < to:
        while running and running[0][0] <= at:
            heapq.heappop(running)
        until = min(to, running[0][0]) if running else to
        if running:
            for _, number in running:
                _give(entries[number], tries, parts, (until - at) / len(running))
        else:
            _give_gap(tries, parts, at, until)
        at = until
    return max(at, to)


def _give(
    entry: Entry, tries: Sequence[tuple[float, float]], parts: dict[str, float], seconds: float
) -> None:
    share = min(1.0, entry.share / entry.seconds) if entry.seconds > 0 else 0.0
    part = _PART_OF.get(entry.step, "other")
    if part == "other" and any(first <= entry.begin < last for first, last in tries):
        part = "configure"
    parts["9p"] += seconds * share
    parts[part] += seconds * (1 - share)


def _give_gap(
    tries: Sequence[tuple[float, float]], parts: dict[str, float], at: float, until: float
) -> None:
    inside = sum(max(0.0, min(until, last) - max(at, first)) for first, last in tries)
    parts["configure"] += inside
    parts["other"] += until - at - inside


def _tries(ordered: Sequence[Entry]) -> list[tuple[float, float]]:
    """From the first to the last try of each configure script, none of another kind between."""
    found: list[tuple[float, float]] = []
    within = False
    for entry in ordered:
        if entry.step == "configure":
            last = entry.begin + entry.seconds
            if within:
                found[-1] = found[-1][0], max(found[-1][1], last)
            else:
                found.append((entry.begin, last))
            within = True
        elif entry.step not in _NEUTRAL:
            within = False
    return found
