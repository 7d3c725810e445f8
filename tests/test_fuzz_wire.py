"""The host's decoder and session against mutated bytes for a moment, and all that was ever found.

`make fuzz` does it for a minute, with coverage, and the guest's side as well.
"""

from __future__ import annotations

from tests.fuzz.fuzz_wire import run, seeds, try_bytes


def test_what_was_found_before() -> None:
    for data in seeds():
        try_bytes(data)


def test_mutated_for_a_moment() -> None:
    assert run(2, 1) > 50
