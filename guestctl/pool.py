"""Pools: guests brought up together, leased one by one, taken down without a trace.

A pool is nothing but a run directory and one supervisor per guest. Any process of the same user
can attach.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from guestctl.cloning import Origin, origin_of
from guestctl.errors import AgentBroke, GuestHung, GuestLost, PoolError
from guestctl.facts import guest_facts, live_jobs, orphans, state_of
from guestctl.guest import Guest
from guestctl.jobs import parse_job_name
from guestctl.journal import record
from guestctl.launch import any_alive, await_ready, end_guests, forget_share, start_guest
from guestctl.places import Places, private_directory
from guestctl.plan import PoolOptions, ledger_path, own_shares, plan_pool
from guestctl.processes import ProcessId
from guestctl.retrying import in_guests
from guestctl.rundir import GuestDir, PoolDir, flocked, pool_names
from guestctl.spec import GuestSpec

__all__ = ["DEFAULT_NAME", "Pool", "only_pool"]

DEFAULT_NAME = "default"
_Made = TypeVar("_Made")
_LEASE_POLL = 0.01
# Within so many seconds a guest that can be leased says that it is there.
_GREETING = 15.0


class Pool:
    """A pool that this process has brought up; `Pool.attach` finds one that is up already.

    As a context manager it is taken down at the end.
    """

    def __init__(
        self,
        arch: str,
        size: int = 1,
        *,
        name: str | None = None,
        places: Places | None = None,
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        """Brings the pool up and returns when all its guests are ready.

        `options` are the further fields of PoolOptions. Without a name it gets a new one, and
        lives no longer than this process. Raises
        UsageError, HostLacks, ImageError, ShareError, PoolError, and GuestLost when a guest does
        not boot.
        """
        self._places = places or Places.of_user()
        self._options = PoolOptions(arch, size, **options)
        self._dir = PoolDir.named(self._places.runtime, name or f"{arch}-{secrets.token_hex(4)}")
        self._progress = progress or (lambda _text: None)
        # The reading end is for the supervisors, the writing end ends with this process.
        self._leash = os.pipe2(os.O_CLOEXEC) if name is None else None
        self._up()

    @classmethod
    def attach(cls, name: str = DEFAULT_NAME, *, places: Places | None = None) -> Pool:
        """The pool `name` that is up already; raises PoolError when there is none."""
        pool = cls.__new__(cls)
        pool._places = places or Places.of_user()
        pool._dir = PoolDir.named(pool._places.runtime, name)
        pool._progress = lambda _text: None
        pool._leash = None
        spec = pool._dir.spec()
        if not spec:
            raise PoolError(
                f"there is no pool {name!r}", hint="guestctl pool up -n 1 --arch ARCH brings one up"
            )
        pool._options = PoolOptions(**spec["options"])
        return pool

    @property
    def name(self) -> str:
        return self._dir.name

    @property
    def image(self) -> str:
        """The id of the image that its guests have."""
        return str(self._dir.spec().get("image", ""))

    @property
    def options(self) -> PoolOptions:
        return self._options

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # --- up ---------------------------------------------------------------------------------

    def _up(self) -> None:
        options = self._options
        _sweep(self._places)
        plan = plan_pool(options, self.name, self._places)
        facts = {"options": asdict(options), "image": plan.image, "remarks": plan.remarks}
        self._claim({**facts, "leashed": self._leash is not None})
        ledger_path(self._places, self.name).unlink(missing_ok=True)
        try:
            waiting = {}
            with self._origin(plan.guests[0]) as origin:
                for spec in plan.guests:
                    waiting.update(self._start(spec, origin))
            await_ready(waiting, options.boot_timeout, self._progress)
        except BaseException:
            self.down()
            raise

    def _origin(self, spec: GuestSpec) -> AbstractContextManager[Origin]:
        """What guests of this pool start from; all of them are alike."""
        cold = "--cold was given" if self._options.cold else ""
        return origin_of(spec, self._places.cache, cold=cold, siblings=self._dir.guests())

    def _start(self, spec: GuestSpec, origin: Origin) -> dict[int, GuestDir]:
        leash = self._leash[0] if self._leash else None
        folder = self._dir.guest(spec.name)
        if spec.member:
            origin = Origin(cold="a board")
        return start_guest(folder, spec, self._places.runtime, leash, origin)

    def _claim(self, spec: dict[str, Any]) -> None:
        """Makes the run directory, all at once, or says who has it."""
        pools = private_directory(self._dir.path.parent)
        aside = PoolDir(pools / f".{self.name}.{os.getpid()}.{secrets.token_hex(4)}")
        aside.create()
        me = ProcessId.of(os.getpid())
        aside.write_spec(
            {**spec, "name": self.name, "creator_pid": me.pid, "creator_start": me.start}
        )
        try:
            os.rename(aside.path, self._dir.path)
        except OSError:
            if self._alive():
                aside.remove()
                raise PoolError(
                    f"the pool {self.name!r} is up already",
                    hint=f"guestctl pool down --name {self.name}, or use another --name",
                ) from None
            # Its processes are gone: a machine that was switched off, or killed supervisors.
            end_guests(self._dir.guests())
            self._dir.remove()
            os.rename(aside.path, self._dir.path)

    def _alive(self) -> bool:
        """Whether anything of the pool runs, or somebody is bringing it up."""
        if any_alive(self._dir.guests()):
            return True
        spec = self._dir.spec()
        creator = ProcessId(spec.get("creator_pid", 0), spec.get("creator_start", 0))
        return not self._dir.guests() and creator.alive()

    # --- use --------------------------------------------------------------------------------

    def lease(
        self, timeout: float | None = None, *, fresh: bool = False, orphan: float = 60.0
    ) -> Guest:
        """Exclusive use of a guest, waiting up to `timeout` seconds for a free one.

        `fresh` gives a guest that nobody has used since it booted. One that was lost is replaced
        by a new one. Should this process be killed, its commands live on for `orphan` seconds, see
        `adopt`. Raises PoolError when none becomes free in time or the pool is taken down, and
        GuestLost when a new guest does not boot.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if not self._dir.spec() or _ending(self._dir).exists():
                raise PoolError(f"the pool {self.name!r} is down")
            if not self._dir.guests() and not self._alive():
                raise PoolError(
                    f"the pool {self.name!r} has no guests: whoever was to bring it up has died",
                    hint=f"guestctl pool up --name {self.name} does it anew",
                )
            for folder in self._by_preference(fresh):
                guest = self._try_lease(folder, fresh, orphan)
                if guest is not None:
                    return guest
            if deadline is not None and time.monotonic() >= deadline:
                raise PoolError(f"no guest of pool {self.name!r} was free within {timeout:g} s")
            # flock has no way to wait for the first of several locks.
            time.sleep(_LEASE_POLL)

    def _by_preference(self, fresh: bool) -> list[GuestDir]:
        """The guests, those first that can be had at once: lost ones have to boot."""
        return sorted(
            self._dir.guests(),
            key=lambda folder: (_is_lost(folder), fresh and _worn(folder).exists()),
        )

    def _try_lease(self, folder: GuestDir, fresh: bool, orphan: float) -> Guest | None:
        """The guest, if its lease is free and nothing of an earlier holder runs in it."""
        lease = _locked(folder)
        if lease is None:
            return None
        try:
            lost = _is_lost(folder)
            if lost or (fresh and _worn(folder).exists()):
                # Not from under somebody's orphan.
                if not lost and _busy(folder):
                    os.close(lease)
                    return None
                self._replace(folder, fresh)
            guest = _connected(folder, lease, orphan)
            if guest is None:
                os.close(lease)
                return None
            _worn(folder).touch(0o600)
        except BaseException:
            os.close(lease)
            raise
        record(folder.journal, "lease", guest=folder.name, pid=os.getpid())
        return guest

    def call(
        self,
        work: Callable[[Guest], _Made],
        *,
        retries: int = 0,
        timeout: float | None = None,
        fresh: bool = False,
    ) -> _Made:
        """What `work` returns, given a leased guest; `timeout` and `fresh` are for the lease.

        When the guest is lost meanwhile, `work` begins anew in another one, up to `retries` times;
        a share that was the lost guest's own may be dirty then, see Share.dirt. Nothing else is
        repeated, a failed command least of all. Raises what `lease` and `work` raise.
        """
        return in_guests(lambda: self.lease(timeout, fresh=fresh), work, retries)

    def adopt(self, job: str | None = None, *, orphan: float = 60.0) -> Guest:
        """The guest with an orphan, leased: `job` as `status` names it, or the only one there is.

        `Guest.attach` then takes the command over. Raises PoolError when there is no such orphan,
        or another process has its guest.
        """
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
            guest = Guest.connect(folder, lease, orphan=orphan, adopt=True)
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
                f"{len(found)} guests of pool {self.name!r} have orphans",
                hint="guestctl pool status shows them; name one, as in g0:3",
            )
        return found[0]

    def _replace(self, folder: GuestDir, fresh: bool) -> None:
        """Ends a guest and boots a new one in its place; the caller holds the lease."""
        spec = GuestSpec(**folder.spec())
        record(folder.journal, "replace", guest=folder.name)
        end_guests([folder])
        for path in (
            *(_worn(folder), folder.condemned, folder.mounts, folder.jobs),
            *(folder.agent, folder.monitor),
        ):
            path.unlink(missing_ok=True)
        # The pool's own trees are part of what a fresh guest must not inherit.
        trees = [spec.base, spec.work] if self._options.share is None else [spec.base]
        for tree in trees if fresh else ():
            # A lock is known by its folder, and would stay behind without it.
            forget_share(Path(tree), self._places.runtime)
            shutil.rmtree(tree, ignore_errors=True)
            Path(tree).mkdir(mode=0o700)
        with self._origin(spec) as origin:
            waiting = self._start(spec, origin)
        await_ready(waiting, spec.boot_timeout, self._progress)

    def status(self) -> list[dict[str, Any]]:
        """The facts of each guest, as `pool status --json` prints them."""
        return [guest_facts(folder) for folder in self._dir.guests()]

    def guest_folder(self, name: str) -> GuestDir:
        """The run directory of one of its guests; raises PoolError."""
        folder = self._dir.guest(name)
        if folder not in self._dir.guests():
            known = ", ".join(known.name for known in self._dir.guests())
            raise PoolError(f"pool {self.name!r} has no guest {name!r}", hint=f"it has {known}")
        return folder

    @property
    def journal(self) -> Path:
        """The file of the pool's events, see guestctl.journal."""
        return self._dir.journal

    def remarks(self) -> list[str]:
        """What a user should know of this pool: slower or less confined than it might be."""
        return [str(remark) for remark in self._dir.spec().get("remarks", [])]

    # --- down -------------------------------------------------------------------------------

    def down(self) -> None:
        """Ends all guests and removes every file of the pool; a second time does nothing."""
        folders = self._dir.guests()
        if folders:
            # From here on nobody replaces the guests that we end.
            _ending(self._dir).touch(0o600)
        leashed = self._dir.spec().get("leashed")
        end_guests(folders)
        for folder in folders:
            forget_share(Path(folder.spec().get("work", "/nonexistent")), self._places.runtime)
        self._dir.remove()
        if leashed:
            ledger_path(self._places, self.name).unlink(missing_ok=True)
        for handle in self._leash or ():
            os.close(handle)
        self._leash = None
        shutil.rmtree(own_shares(self._places, self.name), ignore_errors=True)


def _sweep(places: Places) -> None:
    """Removes what is left of pools whose owner was killed; their guests ended with it."""
    for name in pool_names(places.runtime):
        spec = PoolDir(places.runtime / "pools" / name).spec()
        owner = ProcessId(spec.get("creator_pid", 0), spec.get("creator_start", 0))
        if spec.get("leashed") and not owner.alive():
            Pool.attach(name, places=places).down()


def _connected(folder: GuestDir, lease: int, orphan: float) -> Guest | None:
    """The guest, unless it is still busy, or turns out to be lost: that is no other's harm."""
    try:
        return Guest.connect(folder, lease, orphan=orphan, timeout=_GREETING)
    except (AgentBroke, GuestHung):
        return None
    except GuestLost:
        if not _is_lost(folder):
            raise
        return None


def _busy(folder: GuestDir) -> bool:
    """Whether somebody's orphan runs in a guest; one that cannot be asked has none to lose."""
    try:
        return bool(live_jobs(folder))
    except (GuestLost, OSError):
        return False


def only_pool(places: Places) -> str:
    """The name to use when the caller gave none: `default`, or the only one there is."""
    names = pool_names(places.runtime)
    if DEFAULT_NAME in names or len(names) != 1:
        return DEFAULT_NAME
    return names[0]


def _ending(folder: PoolDir) -> Path:
    """Its existence says that the pool is being taken down."""
    return folder.path / "ending"


def _is_lost(folder: GuestDir) -> bool:
    """Whether the guest has ended, by itself or with its supervisor."""
    return state_of(folder) in ("lost", "stopped")


def _worn(folder: GuestDir) -> Path:
    """Its existence says that somebody has leased the guest since it booted."""
    return folder.path / "used"


def _locked(folder: GuestDir) -> int | None:
    """The lease of a guest that is ready or lost, with our pid in it; None where it is not to be
    had.
    """
    lease = flocked(folder.lease)
    if lease is None:
        return None
    if state_of(folder) != "ready" and not _is_lost(folder):
        os.close(lease)
        return None
    os.ftruncate(lease, 0)
    os.pwrite(lease, str(os.getpid()).encode(), 0)
    return lease
