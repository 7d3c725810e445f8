"""Time-outs that do not count what the host did not let the guest run."""

from __future__ import annotations

import pytest

from guestctl import patience
from guestctl.patience import MOST, Patience


class Clock:
    """Stands for the host's, so that a busy host does not matter."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(patience, "time", made)
    return made


def test_without_a_limit_there_is_no_end() -> None:
    endless = Patience(None)
    endless.restart()
    assert endless.left() is None
    assert not endless.over()


def test_it_is_over_when_the_time_has_passed(clock: Clock) -> None:
    limit = Patience(2)
    assert limit.left() == 2
    clock.sleep(1.5)
    assert limit.left() == 0.5
    clock.sleep(1)
    assert limit.over()


def test_starvation_is_forgiven(clock: Clock) -> None:
    counts = iter([5.0, 6.0, 6.0])
    limit = Patience(2, starved=lambda: next(counts))
    clock.sleep(2.5)
    assert limit.left() == 0.5
    clock.sleep(0.5)
    assert limit.over()


def test_what_starved_it_before_is_not(clock: Clock) -> None:
    limit = Patience(2, starved=lambda: 100.0)
    clock.sleep(3)
    assert limit.over()


def test_a_sign_of_life_sets_it_back(clock: Clock) -> None:
    limit = Patience(2)
    clock.sleep(3)
    limit.restart()
    assert limit.left() == 2


def test_every_wait_has_an_end(clock: Clock) -> None:
    """A count that grows faster than time does not keep it alive."""
    begin = clock.now
    limit = Patience(2, starved=lambda: 1000 * (clock.now - begin))
    while not limit.over():
        assert clock.now < begin + 1000
        clock.sleep(0.25)
    assert clock.now - begin == 2 * MOST


def test_the_hosts_own_clock_is_what_it_asks() -> None:
    assert 0 < (Patience(60).left() or 0) <= 60
