"""Which component is built next. Pure: it is told what ended, and says what may start.

Longest path first: of all that could start, the one on which the most work waits. A failure stops
only what depends on it; what was lost with its guest is waiting again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Literal

from guestctl.builder.graph import longest_paths

__all__ = ["Schedule", "State"]

State = Literal["waiting", "running", "done", "failed", "stopped"]


class Schedule:
    """The components that are to be built. Those that they need and that are not among them are
    there already. `seconds` are what each took last time, or a guess.
    """

    def __init__(self, graph: Mapping[str, Iterable[str]], seconds: Mapping[str, float]) -> None:
        needs = {name: {need for need in graph[name] if need in graph} for name in graph}
        self._weights = longest_paths(needs, seconds)
        self._seconds = dict(seconds)
        self._missing = needs
        self._users: dict[str, list[str]] = {name: [] for name in graph}
        for name, wanted in needs.items():
            for need in wanted:
                self._users[need].append(name)
        self.states: dict[str, State] = dict.fromkeys(graph, "waiting")
        self._ready: list[tuple[float, str]] = []
        for name, wanted in needs.items():
            if not wanted:
                self._offer(name)

    def _offer(self, name: str) -> None:
        heapq.heappush(self._ready, (-self._weights[name], name))

    def start(self) -> str | None:
        """The component to start now, or None when nothing can start before something ends."""
        if not self._ready:
            return None
        _, name = heapq.heappop(self._ready)
        self.states[name] = "running"
        return name

    def done(self, name: str) -> None:
        """It is built; what waited for it alone may start."""
        self.states[name] = "done"
        for user in self._users[name]:
            self._missing[user].discard(name)
            if not self._missing[user] and self.states[user] == "waiting":
                self._offer(user)

    def lost(self, name: str) -> None:
        """Its guest died: it waits again."""
        self.states[name] = "waiting"
        self._offer(name)

    def failed(self, name: str) -> list[str]:
        """It cannot be built; returns what will not be built for that reason."""
        self.states[name] = "failed"
        stopped = []
        waiting = list(self._users[name])
        while waiting:
            user = waiting.pop()
            if self.states[user] == "waiting":
                self.states[user] = "stopped"
                stopped.append(user)
                waiting.extend(self._users[user])
        return sorted(stopped)

    def stop(self) -> None:
        """Nothing more starts; what runs may end."""
        for name, state in self.states.items():
            if state == "waiting":
                self.states[name] = "stopped"
        self._ready.clear()

    @property
    def ended(self) -> bool:
        return not any(state in ("waiting", "running") for state in self.states.values())

    def rest(self, guests: int, elapsed: Mapping[str, float]) -> float:
        """At least so many seconds are left, with so many guests: a bound, not a promise.

        `elapsed` is how long those that run have done so.
        """
        done = {name: min(elapsed.get(name, 0.0), self._seconds[name]) for name in self._seconds}
        left = [name for name, state in self.states.items() if state in ("waiting", "running")]
        work = sum(self._seconds[name] - done[name] for name in left)
        return max([work / guests, *(self._weights[name] - done[name] for name in left)], default=0)
