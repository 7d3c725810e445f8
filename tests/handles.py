"""What this process has open: a leak is told from what other tests' threads close meanwhile."""

from __future__ import annotations

import contextlib
import os

Handles = frozenset[tuple[str, str]]


def handles() -> Handles:
    """Each descriptor, and what it is of."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # The listing's own.
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return frozenset(found)


def left_open(before: Handles) -> Handles:
    """Those that have come since."""
    return handles() - before
