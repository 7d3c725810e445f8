"""Work that is begun anew in another guest when its guest was lost, and for no other reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from guestctl.errors import GuestLost, UsageError
from guestctl.guest import Guest

__all__ = ["in_guests"]

_log = logging.getLogger(__name__)
_Made = TypeVar("_Made")


def in_guests(lease: Callable[[], Guest], work: Callable[[Guest], _Made], retries: int) -> _Made:
    """What `work` returns in a guest from `lease`; raises GuestLost after `retries` more attempts.

    A command that fails is a result, and what else is raised is no guest's fault: both are final.
    """
    if retries < 0:
        raise UsageError(f"retries are 0 or more, not {retries}")
    while True:
        try:
            with lease() as guest:
                return work(guest)
        except GuestLost as error:
            if not retries:
                raise
            retries -= 1
            _log.info("once more, in another guest: %s", error)
