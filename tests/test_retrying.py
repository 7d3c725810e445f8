"""Retries are for lost guests, and for nothing else."""

from __future__ import annotations

from typing import Any

from guestctl.errors import AgentBroke, GuestctlError, GuestLost, PoolError, UsageError
from guestctl.retrying import in_guests


class Fake:
    """A guest as far as `with` is concerned."""

    def __init__(self, left: list[int]) -> None:
        self.left = left

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        self.left.append(id(self))


def attempts(retries: int, *outcomes: object) -> tuple[Any, int]:
    """What comes of it, and how many guests it took; each was given back."""
    left: list[int] = []
    given: list[Fake] = []
    waiting = list(outcomes)

    def lease() -> Any:
        given.append(Fake(left))
        return given[-1]

    def work(_guest: object) -> object:
        outcome = waiting.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    try:
        found: Any = in_guests(lease, work, retries)
    except GuestctlError as error:
        found = error
    assert left == [id(guest) for guest in given]
    return found, len(given)


def test_a_lost_guest_is_tried_again_elsewhere() -> None:
    assert attempts(2, GuestLost("one"), AgentBroke("two"), "made") == ("made", 3)


def test_after_the_last_retry_the_loss_is_the_callers() -> None:
    found, guests = attempts(1, GuestLost("one"), GuestLost("two"), "made")
    assert (str(found), guests) == ("two", 2)
    assert attempts(0, GuestLost("one"), "made")[1] == 1


def test_a_failed_command_is_a_result_and_final() -> None:
    failed = {"status": 1}
    assert attempts(5, failed, "made") == (failed, 1)


def test_what_else_is_raised_is_final() -> None:
    found, guests = attempts(5, PoolError("no"), "made")
    assert (str(found), guests) == ("no", 1)


def test_fewer_than_none_makes_no_sense() -> None:
    assert isinstance(attempts(-1, "made")[0], UsageError)
