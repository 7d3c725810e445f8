"""Time-outs that do not count what the host did not let the guest run."""

from __future__ import annotations

import time

from guestctl.patience import MOST, Patience


def test_without_a_limit_there_is_no_end() -> None:
    patience = Patience(None)
    patience.restart()
    assert patience.left() is None
    assert not patience.over()


def test_it_is_over_when_the_time_has_passed() -> None:
    patience = Patience(0.02)
    assert 0 < (patience.left() or 0) <= 0.02
    time.sleep(0.03)
    assert patience.over()


def test_starvation_is_forgiven() -> None:
    counts = iter([5.0, 6.0, 6.0])
    patience = Patience(0.02, starved=lambda: next(counts))
    time.sleep(0.03)
    assert 0 < (patience.left() or 0) <= 0.19


def test_what_starved_it_before_is_not() -> None:
    patience = Patience(0.02, starved=lambda: 100.0)
    time.sleep(0.03)
    assert patience.over()


def test_a_sign_of_life_sets_it_back() -> None:
    patience = Patience(0.05)
    time.sleep(0.06)
    patience.restart()
    assert not patience.over()


def test_every_wait_has_an_end() -> None:
    """A count that grows faster than time does not keep it alive."""
    begin = time.monotonic()
    patience = Patience(0.02, starved=lambda: 1000 * (time.monotonic() - begin))
    deadline = time.monotonic() + 10
    while not patience.over():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert time.monotonic() - begin >= 0.02 * MOST
