"""Who gets which guest of a pool: leases of free ones, and of those with an orphan."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guestctl.errors import AgentBroke, GuestHung, GuestLost, PoolError
from guestctl.facts import is_lost, live_jobs, orphans, state_of
from guestctl.jobs import parse_job_name
from guestctl.journal import record
from guestctl.launch import pool_alive
from guestctl.plan import PoolOptions
from guestctl.rundir import GuestDir, PoolDir, flocked, private
from guestctl.spares import call_for_spares, fresh_guests
from guestctl.stock import Stock

if TYPE_CHECKING:
    from guestctl.guest import Guest

__all__ = ["Leases"]

_LEASE_POLL = 0.01
# Seconds that one waits for a guest without a word.
_SILENCE = 2.0
# Within so many seconds a guest that can be leased says that it is there.
_GREETING = 15.0


class Leases:
    """Of the guests in `folder`; `stock` makes new ones where it takes that, and `progress` hears
    that one waits.
    """

    def __init__(
        self,
        folder: PoolDir,
        options: PoolOptions,
        stock: Stock,
        progress: Callable[[str], object],
    ) -> None:
        self._dir = folder
        self._options = options
        self._stock = stock
        self._progress = progress

    def lease(self, timeout: float | None, *, fresh: bool, orphan: float) -> Guest:
        """See Pool.lease."""
        begin = time.monotonic()
        deadline = None if timeout is None else begin + timeout
        told = False
        while True:
            if not self._dir.spec() or self._dir.ending.exists():
                raise PoolError(f"the pool {self._dir.name!r} is down")
            if not self._dir.guests() and not pool_alive(self._dir):
                raise PoolError(
                    f"the pool {self._dir.name!r} has no guests: who was to bring it up has died",
                    hint=f"guestctl pool up --name {self._dir.name} does it anew",
                )
            guest = self._seated(fresh, orphan)
            if guest is not None:
                if fresh or self._options.spares:
                    call_for_spares(self._dir, self._options)
                return guest
            if deadline is not None and time.monotonic() >= deadline:
                raise PoolError(
                    f"no guest of pool {self._dir.name!r} was free within {timeout:g} s"
                )
            if not told and time.monotonic() > begin + _SILENCE:
                self._progress(f"no guest of pool {self._dir.name!r} is free yet: waiting")
                told = True
            # flock has no way to wait for the first of several locks.
            time.sleep(_LEASE_POLL)

    def _seated(self, fresh: bool, orphan: float) -> Guest | None:
        """A guest, if one is to be had and there are not as many leases as the pool has guests."""
        seats = range(self._options.size + len(self._options.members))
        seat = next((held for n in seats if (held := flocked(self._dir.seat(n))) is not None), None)
        if seat is None:
            return None
        guest = None
        try:
            for folder in self._by_preference(fresh):
                guest = self._try_lease(folder, fresh, orphan)
                if guest is not None:
                    guest.seat = seat
                    break
        finally:
            if guest is None:
                os.close(seat)
        return guest

    def _by_preference(self, fresh: bool) -> list[GuestDir]:
        """The guests, those first that can be had at once: lost ones have to boot.

        Those that nobody has used are for who wants that; one that is about to come is waited for.
        """
        spares = fresh_guests(self._dir) if fresh else []
        return spares or sorted(
            self._dir.guests(),
            key=lambda folder: (is_lost(folder), fresh == folder.used.exists()),
        )

    def _try_lease(self, folder: GuestDir, fresh: bool, orphan: float) -> Guest | None:
        """The guest, if its lease is free and nothing of an earlier holder runs in it."""
        lease = _locked(folder)
        if lease is None:
            return None
        try:
            lost = is_lost(folder)
            if lost or (fresh and folder.used.exists()):
                # Not from under somebody's orphan.
                if not lost and _busy(folder):
                    os.close(lease)
                    return None
                self._stock.replace(folder, fresh)
            guest = _connected(folder, lease, orphan)
            if guest is None:
                os.close(lease)
                return None
            with open(folder.used, "w", encoding="ascii", opener=private) as used:
                used.write("fresh" if fresh else "")
        except BaseException:
            os.close(lease)
            raise
        record(folder.journal, "lease", guest=folder.name, pid=os.getpid())
        return guest

    def adopt(self, job: str | None, *, orphan: float) -> Guest:
        """See Pool.adopt."""
        if job is None:
            folder = self._only_orphaned()
            number = None
        else:
            name, number = parse_job_name(job)
            folder = self._dir.guest(name)
        lease = _locked(folder) if folder.path.is_dir() else None
        if lease is None:
            raise PoolError(
                f"guest {folder.name} is not there, or another process has it",
                hint="guestctl pool status shows who",
            )
        try:
            guest = _connect(folder, lease, orphan=orphan, adopt=True)
        except BaseException:
            os.close(lease)
            raise
        assert guest is not None
        if not guest.orphans or (number is not None and number not in guest.orphans):
            guest.release()
            raise PoolError(
                f"there is no orphan {job or ''} in guest {folder.name}",
                hint="it has ended, or its time was over; guestctl pool events shows which",
            )
        return guest

    def _only_orphaned(self) -> GuestDir:
        found = [folder for folder in self._dir.guests() if orphans(folder)]
        if len(found) != 1:
            raise PoolError(
                f"{len(found)} guests of pool {self._dir.name!r} have orphans",
                hint="guestctl pool status shows them; name one, as in g0:3",
            )
        return found[0]


def _connect(folder: GuestDir, lease: int, **options: Any) -> Guest | None:
    # Not before: guests come up meanwhile.
    from guestctl.guest import Guest

    return Guest.connect(folder, lease, **options)


def _busy(folder: GuestDir) -> bool:
    """Whether somebody's orphan runs in a guest; one that cannot be asked has none to lose."""
    try:
        return bool(live_jobs(folder))
    except (GuestLost, OSError):
        return False


def _connected(folder: GuestDir, lease: int, orphan: float) -> Guest | None:
    """The guest, unless it is still busy, or turns out to be lost: that is no other's harm."""
    try:
        return _connect(folder, lease, orphan=orphan, timeout=_GREETING)
    except (AgentBroke, GuestHung):
        return None
    except GuestLost:
        if not is_lost(folder):
            raise
        return None


def _locked(folder: GuestDir) -> int | None:
    """The lease of a guest that is ready or lost, with our pid in it; None where it is not to be
    had.
    """
    lease = flocked(folder.lease)
    if lease is None:
        return None
    if state_of(folder) != "ready" and not is_lost(folder):
        os.close(lease)
        return None
    os.ftruncate(lease, 0)
    os.pwrite(lease, str(os.getpid()).encode(), 0)
    return lease
