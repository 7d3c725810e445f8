"""What needs what: order, cycles, and how long the longest way from a component to the end is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from guestctl.errors import DefinitionError

__all__ = ["closure", "in_order", "longest_paths"]

Graph = Mapping[str, Iterable[str]]


def closure(graph: Graph, names: Iterable[str]) -> set[str]:
    """These and all that they need, however far down."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(graph[name])
    return found


def in_order(graph: Graph) -> list[str]:
    """All names, each after what it needs; what is free to choose goes by name.

    :raise DefinitionError: there is a cycle; it is named.
    """
    missing = {name: set(needs) for name, needs in graph.items()}
    users = _users(graph)
    ready = sorted((name for name, needs in missing.items() if not needs), reverse=True)
    order = []
    while ready:
        name = ready.pop()
        order.append(name)
        freed = []
        for user in users[name]:
            missing[user].discard(name)
            if not missing[user]:
                freed.append(user)
        ready.extend(sorted(freed, reverse=True))
    if len(order) < len(missing):
        raise DefinitionError("these need each other: " + " → ".join(_cycle(missing, set(order))))
    return order


def longest_paths(graph: Graph, seconds: Mapping[str, float]) -> dict[str, float]:
    """For each name, the seconds from its start to the end of all that waits for it."""
    users = _users(graph)
    found: dict[str, float] = {}
    for name in reversed(in_order(graph)):
        found[name] = seconds[name] + max((found[user] for user in users[name]), default=0.0)
    return found


def _users(graph: Graph) -> dict[str, list[str]]:
    users: dict[str, list[str]] = {name: [] for name in graph}
    for name, needs in graph.items():
        for need in set(needs):
            users[need].append(name)
    return users


def _cycle(graph: Graph, done: set[str]) -> list[str]:
    """One cycle among the names that are not done: from each, a need that is not done is left."""
    name = min(set(graph) - done)
    seen: list[str] = []
    while name not in seen:
        seen.append(name)
        name = min(need for need in graph[name] if need not in done)
    return [*seen[seen.index(name) :], name]
