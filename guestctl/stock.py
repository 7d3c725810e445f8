"""The guests of one pool: started together, and replaced one by one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from guestctl.cloning import Origin, origin_of
from guestctl.journal import record
from guestctl.launch import await_ready, end_guests, forget_share, start_guest
from guestctl.places import Places
from guestctl.plan import PoolOptions
from guestctl.rundir import GuestDir, PoolDir
from guestctl.spec import GuestSpec

__all__ = ["Stock"]


class Stock:
    """`forks`: supervisors may be forks of this process, see guestctl.separate."""

    def __init__(
        self,
        folder: PoolDir,
        options: PoolOptions,
        places: Places,
        *,
        progress: Callable[[str], object],
        forks: bool = False,
    ) -> None:
        self._dir = folder
        self._options = options
        self._places = places
        self._forks = forks
        self._progress = progress

    def start(self, specs: Sequence[GuestSpec]) -> None:
        """Starts guests, which are all alike, and waits until they are ready; raises GuestLost."""
        waiting = {}
        with self._origin(specs[0]) as origin:
            for spec in specs:
                waiting.update(self._started(spec, origin))
            origin.complete()
        # While the guests come, what their use needs is loaded.
        from guestctl import guest  # noqa: F401

        if any(spec.offload != "off" for spec in specs):
            from guestctl.offload import Offload  # noqa: F401

        await_ready(waiting, self._options.boot_timeout, self._progress)

    def replace(self, folder: GuestDir, fresh: bool) -> None:
        """Ends a guest and boots a new one in its place; the caller holds the lease."""
        spec = GuestSpec(**folder.spec())
        record(folder.journal, "replace", guest=folder.name)
        end_guests([folder])
        for path in (
            *(folder.used, folder.condemned, folder.mounts, folder.jobs),
            *(folder.agent, folder.monitor, folder.orderly),
        ):
            path.unlink(missing_ok=True)
        # The pool's own trees are part of what a fresh guest must not inherit.
        trees = [spec.base, spec.work] if self._options.share is None else [spec.base]
        for tree in trees if fresh else ():
            # A lock is known by its folder, and would stay behind without it.
            forget_share(Path(tree), self._places.runtime)
            shutil.rmtree(tree, ignore_errors=True)
            Path(tree).mkdir(mode=0o700)
        self.start([spec])

    def _origin(self, spec: GuestSpec) -> AbstractContextManager[Origin]:
        """What guests of this pool start from."""
        cold = "--cold was given" if self._options.cold else ""
        return origin_of(spec, self._places.cache, cold=cold, siblings=self._dir.guests())

    def _started(self, spec: GuestSpec, origin: Origin) -> dict[int, GuestDir]:
        if spec.member:
            origin = Origin(cold="a board")
        folder = self._dir.guest(spec.name)
        owner = self._dir.owner()
        return start_guest(
            folder, spec, self._places.runtime, origin, owner=owner, forks=self._forks
        )
