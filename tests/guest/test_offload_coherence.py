"""What is written in a guest the moment before is what the host compiles, and what comes of it is
there at once: a thousand rounds on each security model would find what is stale or cut short."""

from __future__ import annotations

from pathlib import Path

from guestctl import Guest

from .coherence import compiled, rounds

JOBS = 4
EACH = 125


def test_what_was_written_the_moment_before_is_seen(offload_guest: Guest, tmp_path: Path) -> None:
    found = rounds(offload_guest, compiled(tmp_path), JOBS, EACH)
    assert found.where == {"offload": found.calls, "distcc": 0, "guest": 0}, found.reasons
