"""The soak itself: workers that lease and run, and one thread that does mischief meanwhile."""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from guestctl.errors import GuestctlError, GuestLost
from guestctl.guest import Guest
from guestctl.places import Places
from guestctl.pool import Pool
from guestctl.rundir import GuestDir, PoolDir
from guestctl.soak.errands import ERRANDS, Errand, Wrong
from guestctl.soak.leaks import Held, held_by_us, left_of_pool, lock_names, locks_left
from guestctl.soak.mischief import MISCHIEF
from guestctl.soak.report import Report

__all__ = ["Soak", "SoakOptions"]

# However often a guest is lost under a job, it comes to its outcome in so many attempts.
_ATTEMPTS = 30
_LEASE_TIMEOUT = 300.0
_FRESH = 0.2
# What may be held at the end that was not at the beginning: caches of the interpreter.
_DESCRIPTORS = 4
_MEMORY = 48 << 10
_SETTLE = 10.0
_NUMBERS = re.compile(r"\d[\d.]*")


@dataclass(frozen=True)
class SoakOptions:
    """It ends after `jobs` jobs or `seconds` seconds, whichever is set; `every` is the mean time
    in seconds between two strokes of mischief, 0 for none."""

    arch: str
    guests: int = 2
    workers: int = 3
    jobs: int = 0
    seconds: float = 60.0
    every: float = 2.0
    seed: int = 0


class Soak:
    def __init__(
        self,
        options: SoakOptions,
        *,
        places: Places | None = None,
        progress: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._options = options
        self._places = places or Places.of_user()
        self._progress = progress
        self._report = Report(options.seed, options.guests)
        self._numbers: Iterator[int] = itertools.count(1)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._seen: set[tuple[str, object]] = set()

    def run(self) -> Report:
        """Raises what bringing the pool up raises."""
        before, locks = held_by_us(), lock_names(self._places)
        begin = time.monotonic()
        # Without a name of its own it ends with us, should we be killed.
        pool = Pool(self._options.arch, self._options.guests, places=self._places)
        try:
            self._work(pool, begin)
        finally:
            pool.down()
        self._report.seconds = time.monotonic() - begin
        self._report.replaced = max(0, len(self._seen) - self._options.guests)
        self._look_for_leaks(pool.name, before)
        self._report.leaks += locks_left(self._places, locks)
        return self._report

    def _work(self, pool: Pool, begin: float) -> None:
        threads = [
            threading.Thread(target=self._worker, args=(pool,), daemon=True)
            for _ in range(self._options.workers)
        ]
        if self._options.every:
            threads.append(threading.Thread(target=self._spoil, args=(pool,), daemon=True))
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads[: self._options.workers]):
                left = self._options.seconds - (time.monotonic() - begin)
                if self._options.seconds and left <= 0:
                    self._over.set()
                self._over.wait(1.0) if not self._over.is_set() else time.sleep(0.1)
        finally:
            self._over.set()
            for thread in threads:
                thread.join(_LEASE_TIMEOUT)

    # --- jobs -------------------------------------------------------------------------------

    def _worker(self, pool: Pool) -> None:
        while not self._over.is_set():
            with self._lock:
                number = next(self._numbers)
            if self._options.jobs and number > self._options.jobs:
                return
            rng = random.Random(f"{self._options.seed}/{number}")
            names = list(ERRANDS)
            weights = [errand.weight for errand in ERRANDS.values()]
            (what,) = rng.choices(names, weights)
            fresh = ERRANDS[what].fresh or rng.random() < _FRESH
            self._job(pool, number, what, fresh)

    def _job(self, pool: Pool, number: int, what: str, fresh: bool) -> None:
        """One job, until it comes to its outcome."""
        errand = ERRANDS[what]
        for _ in range(_ATTEMPTS):
            # The same each time: it is the same job.
            rng = random.Random(f"{self._options.seed}/{number}/{what}")
            try:
                if self._attempt(pool, errand, fresh, rng):
                    self._report.done(what)
                    return
            except Wrong as error:
                self._report.false.append(f"job {number} ({what}): {error}")
                self._progress(f"job {number} ({what}): {error}")
                return
            except GuestctlError as error:
                self._report.lost.append(f"job {number} ({what}): {error}")
                self._progress(f"job {number} ({what}): {error!r}")
                return
            except Exception as error:
                self._report.lost.append(f"job {number} ({what}): {error!r}")
                self._progress(f"job {number} ({what}): {error!r}")
                raise
        self._report.lost.append(f"job {number} ({what}): its guest was lost {_ATTEMPTS} times")

    def _attempt(self, pool: Pool, errand: Errand, fresh: bool, rng: random.Random) -> bool:
        """Whether it has come to its outcome: no is a guest that was lost."""
        begin = time.monotonic()
        try:
            guest = pool.lease(_LEASE_TIMEOUT, fresh=fresh)
        except GuestLost as error:
            # The one that should have replaced another was struck as it started.
            self._lost("at its start", error)
            return False
        self._report.timed(self._report.leases, time.monotonic() - begin)
        self._see(pool, guest)
        begin = time.monotonic()
        try:
            try:
                errand.work(guest, rng)
            finally:
                guest.release()
        except GuestLost as error:
            self._lost("", error)
            return errand.fatal
        self._report.timed(self._report.runs, time.monotonic() - begin)
        return True

    def _see(self, pool: Pool, guest: Guest) -> None:
        qemu = pool.guest_folder(guest.name).qemu()
        with self._lock:
            self._seen.add((guest.name, qemu))

    def _lost(self, when: str, error: GuestLost) -> None:
        cause = _NUMBERS.sub("N", str(error).partition("was lost: ")[2] or str(error))
        self._report.lost_guest(f"{when}: {cause}" if when else cause)

    # --- mischief ---------------------------------------------------------------------------

    def _spoil(self, pool: Pool) -> None:
        rng = random.Random(f"{self._options.seed}/mischief")
        names = list(MISCHIEF)
        weights = [weight for _strike, weight in MISCHIEF.values()]
        while not self._over.wait(rng.expovariate(1 / self._options.every)):
            (what,) = rng.choices(names, weights)
            folder = rng.choice(_folders(pool, self._places))
            MISCHIEF[what][0](folder, rng)
            self._report.struck(what)

    # --- the end ----------------------------------------------------------------------------

    def _look_for_leaks(self, name: str, before: Held) -> None:
        deadline = time.monotonic() + _SETTLE
        while (left := left_of_pool(self._places, name)) and time.monotonic() < deadline:
            time.sleep(0.1)
        now = held_by_us()
        while now.threads > before.threads and time.monotonic() < deadline:
            time.sleep(0.1)
            now = held_by_us()
        for what, more, allowed in (
            ("descriptors", now.descriptors - before.descriptors, _DESCRIPTORS),
            ("threads", now.threads - before.threads, 0),
            ("KiB of memory", now.memory - before.memory, _MEMORY),
        ):
            if more > allowed:
                left.append(f"{more} {what}")
        self._report.leaks += left


def _folders(pool: Pool, places: Places) -> list[GuestDir]:
    return PoolDir.named(places.runtime, pool.name).guests()
