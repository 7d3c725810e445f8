"""Pools: guests brought up together, leased one by one, taken down without a trace.

A pool is nothing but a run directory and one supervisor per guest. Any process of the same user
can attach.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from guestctl.errors import PoolError
from guestctl.facts import guest_facts
from guestctl.launch import end_guests, forget_share, pool_alive
from guestctl.leasing import Leases
from guestctl.places import Places, private_directory
from guestctl.plan import PoolOptions, ledger_path, make_trees, own_shares, plan_pool
from guestctl.processes import ProcessId
from guestctl.rundir import GuestDir, PoolDir, pool_names
from guestctl.spares import call_for_spares, no_more_spares, ready_spares, wanted_spares
from guestctl.stock import Stock

if TYPE_CHECKING:
    from guestctl.guest import Guest

__all__ = ["DEFAULT_NAME", "Pool", "only_pool"]

DEFAULT_NAME = "default"
_Made = TypeVar("_Made")


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
        progress: Callable[[str], object] | None = None,
        forks: bool = False,
        **options: Any,
    ) -> None:
        """Brings the pool up and returns when all its guests are ready.

        `options` are the further fields of PoolOptions; folders may be Path objects.
        `forks`: the supervisors may be forks of this process, which is quicker, but they keep what
        it holds in memory. Without a name it gets a new one, and lives no longer than this process.
        Raises UsageError, HostLacks, ImageError, ShareError, PoolError, and GuestLost when a guest
        does not boot.
        """
        self._places = places or Places.of_user()
        # They are kept as JSON.
        paths = {name: os.fspath(v) for name, v in options.items() if isinstance(v, os.PathLike)}
        self._options = PoolOptions(arch, size, **{**options, **paths})
        self._dir = PoolDir.named(self._places.runtime, name or f"{arch}-{os.urandom(4).hex()}")
        self._progress = progress or (lambda _text: None)
        self._forks = forks
        self._use()
        self._up(leashed=name is None)

    @classmethod
    def attach(
        cls,
        name: str = DEFAULT_NAME,
        *,
        places: Places | None = None,
        progress: Callable[[str], object] | None = None,
    ) -> Pool:
        """The pool `name` that is up already; raises PoolError when there is none.

        `progress` is told what a lease waits for.
        """
        pool = cls.__new__(cls)
        pool._places = places or Places.of_user()
        pool._dir = PoolDir.named(pool._places.runtime, name)
        pool._progress = progress or (lambda _text: None)
        pool._forks = False
        spec = pool._dir.spec()
        if not spec:
            raise PoolError(
                f"there is no pool {name!r}", hint="guestctl pool up -n 1 --arch ARCH brings one up"
            )
        pool._options = PoolOptions(**spec["options"])
        pool._use()
        return pool

    def _use(self) -> None:
        """What both ways to get a pool have in common."""
        self._stock = Stock(
            self._dir,
            self._options,
            self._places,
            progress=self._progress,
            forks=self._forks,
        )
        self._leases = Leases(self._dir, self._options, self._stock, self._progress)

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

    def _up(self, leashed: bool) -> None:
        options = self._options
        _sweep(self._places)
        plan = plan_pool(options, self.name, self._places)
        make_trees(plan)
        facts = {"options": asdict(options), "image": plan.image, "remarks": plan.remarks}
        self._claim({**facts, "leashed": leashed})
        ledger_path(self._places, self.name).unlink(missing_ok=True)
        try:
            self._stock.start(plan.guests)
            if options.spares:
                call_for_spares(self._dir, options)
        except BaseException:
            self.down()
            raise

    def _claim(self, spec: dict[str, Any]) -> None:
        """Makes the run directory, all at once, or says who has it."""
        pools = private_directory(self._dir.path.parent)
        aside = PoolDir(pools / f".{self.name}.{os.getpid()}.{os.urandom(4).hex()}")
        aside.create()
        aside.spares.touch(0o600)
        me = ProcessId.of(os.getpid())
        aside.write_spec(
            {**spec, "name": self.name, "creator_pid": me.pid, "creator_start": me.start}
        )
        try:
            os.rename(aside.path, self._dir.path)
        except OSError:
            if pool_alive(self._dir):
                aside.remove()
                raise PoolError(
                    f"the pool {self.name!r} is up already",
                    hint=f"guestctl pool down --name {self.name}, or use another --name",
                ) from None
            # Its processes are gone: a machine that was switched off, or killed supervisors.
            end_guests(self._dir.guests())
            self._dir.remove()
            os.rename(aside.path, self._dir.path)

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
        return self._leases.lease(timeout, fresh=fresh, orphan=orphan)

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
        from guestctl.retrying import in_guests

        return in_guests(lambda: self.lease(timeout, fresh=fresh), work, retries)

    def adopt(self, job: str | None = None, *, orphan: float = 60.0) -> Guest:
        """The guest with an orphan, leased: `job` as `status` names it, or the only one there is.

        `Guest.attach` then takes the command over. Raises PoolError when there is no such orphan,
        or another process has its guest.
        """
        return self._leases.adopt(job, orphan=orphan)

    def status(self) -> list[dict[str, Any]]:
        """The facts of each guest, as `pool status --json` prints them."""
        return [guest_facts(folder) for folder in self._dir.guests()]

    def spares(self) -> dict[str, int]:
        """How many guests are kept `ready` for fresh leases, and how many are `wanted`.

        All that nobody has used are ready for one. Where nobody has said how many there should be,
        the first fresh lease makes the first.
        """
        return {"wanted": wanted_spares(self._options), "ready": len(ready_spares(self._dir))}

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
            self._dir.ending.touch(0o600)
            no_more_spares(self._dir)
            folders = self._dir.guests()
        leashed = self._dir.spec().get("leashed")
        end_guests(folders)
        for folder in folders:
            forget_share(Path(folder.spec().get("work", "/nonexistent")), self._places.runtime)
        self._dir.remove()
        if leashed:
            ledger_path(self._places, self.name).unlink(missing_ok=True)
        shutil.rmtree(own_shares(self._places.cache, self.name), ignore_errors=True)


def _sweep(places: Places) -> None:
    """Removes what is left of pools whose owner was killed; their guests ended with it."""
    for name in pool_names(places.runtime):
        owner = PoolDir(places.runtime / "pools" / name).owner()
        if owner is not None and not owner.alive():
            Pool.attach(name, places=places).down()


def _for_one_command(pool: PoolDir) -> bool:
    """Whether it is gone with the process that made it, which leases its only guest."""
    spec = pool.spec()
    return bool(spec.get("leashed") and spec["options"]["single"])


def only_pool(places: Places, *, to_lease: bool = False) -> str:
    """The name to use when the caller gave none: `default`, or the only one there is.

    Who wants a guest `to_lease` does not mean one that was made for another's only command.
    """
    names = pool_names(places.runtime)
    if to_lease:
        names = [
            name for name in names if not _for_one_command(PoolDir.named(places.runtime, name))
        ]
    if DEFAULT_NAME in names or len(names) != 1:
        return DEFAULT_NAME
    return names[0]
