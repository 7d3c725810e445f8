"""Shell scripts in guests, for the tests of offload."""

from __future__ import annotations

from collections.abc import Sequence

from guestctl import Guest
from guestctl.offload import Entry
from tests.fairness import until


def sh(guest: Guest, script: str, **options: object) -> str:
    """Runs a script that must succeed, and gives all that it has said."""
    result = guest.run(["bash", "-c", script], timeout=250, **options)
    output = result.stdout + result.stderr
    assert result.status == 0, output.decode(errors="replace")[-3000:]
    return output.decode(errors="backslashreplace")


def reasons(entries: Sequence[Entry]) -> list[str]:
    """Why calls were not made on the host."""
    return [entry.reason for entry in entries if entry.where != "offload"]


def settle(guest: Guest) -> None:
    """Waits until the ledger has an entry for each call whose caller has ended."""
    until(lambda: not (guest.offload and guest.offload.busy))
