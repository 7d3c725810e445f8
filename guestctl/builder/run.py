"""A build: what is missing is built, in as many guests as the pool has.

One thread a guest takes from the schedule what may start. Nothing here prints: a listener is told
what happens, from those threads.
"""

from __future__ import annotations

import contextlib
import gzip
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from guestctl import Guest, GuestLost, Pool
from guestctl.builder import manifest
from guestctl.builder.events import Event, Outcome
from guestctl.builder.plan import Planner
from guestctl.builder.products import Rules, split
from guestctl.builder.sandbox import EPOCH, Job, Sandbox
from guestctl.builder.schedule import Schedule
from guestctl.builder.sources import Sources
from guestctl.builder.store import LOG, TAR, Store
from guestctl.errors import BuildError, GuestctlError

__all__ = ["Builder"]

_LEASE_TIMEOUT = 3600.0
_LOSSES = 3  # so often may one component's guest die
_GUESS = 60.0  # seconds, for what was never built
_POLL = 0.5
_PLAIN = "whole.tar"
_REASONS = 20  # that a manifest names


class Builder:
    """Builds what a planner finds missing. `folder` is for logs and for what is half done, on the
    disk of the store. With `max_local`, a build fails in which more than so many percent of the
    calls of compilers and the like ran in the guest.
    """

    def __init__(
        self,
        planner: Planner,
        store: Store,
        sources: Sources,
        folder: Path,
        *,
        listener: Callable[[Event], None] = lambda _event: None,
        max_local: float | None = None,
    ) -> None:
        self.max_local = max_local
        self.planner = planner
        self.store = store
        self.sources = sources
        self.logs = folder / "logs"
        self.scratch = folder / "scratch"
        self.tell = listener
        self._run: _Run | None = None
        for each in (self.logs, self.scratch):
            each.mkdir(parents=True, exist_ok=True)

    def build(
        self,
        names: Iterable[str],
        pool: Callable[[int], AbstractContextManager[Pool]],
        *,
        keep_going: bool = False,
    ) -> Outcome:
        """Builds what is missing for `names` (components, strata, systems).

        `pool` brings a pool up, given how many guests there is work for; it is not called when
        nothing is missing. Without `keep_going` the first failure stops what has not started.
        Interrupted, the build cancels what runs, waits for that and lets KeyboardInterrupt pass.
        """
        with self.store.in_use():
            return self._build(list(names), pool, keep_going)

    def _build(
        self,
        goals: list[str],
        pool: Callable[[int], AbstractContextManager[Pool]],
        keep_going: bool,
    ) -> Outcome:
        missing = self.planner.missing(goals)
        needed = self.planner.needed(goals)
        outcome = Outcome(
            cached=[name for name in self.planner.order if name in needed and name not in missing]
        )
        if missing:
            with pool(len(missing)) as guests:
                self._run = _Run(self, guests, missing, outcome, keep_going)
                self._run.run()
        for name in needed:
            artifact = self.store.peek(self.planner.key(name))
            if artifact is not None:
                outcome.artifacts[name] = artifact
        return outcome

    def calls(self, name: str) -> Counter[str]:
        """How many calls of compilers and the like ran where so far, for what is being built."""
        sandbox = self._run.sandboxes.get(name) if self._run else None
        return sandbox.tally() if sandbox else Counter()


class _Run:
    """One build while it goes on."""

    def __init__(
        self, builder: Builder, pool: Pool, missing: list[str], outcome: Outcome, keep_going: bool
    ) -> None:
        self.builder = builder
        self.pool = pool
        self.outcome = outcome
        self.keep_going = keep_going
        past = builder.planner.past_seconds()
        seconds = {name: past.get(name, _GUESS) for name in missing}
        self.schedule = Schedule(builder.planner.graph_of(missing), seconds)
        self.changed = threading.Condition()
        self.stopped = False
        self.losses: dict[str, int] = {}
        self.sandboxes: dict[str, Sandbox] = {}
        self.begun: dict[str, float] = {}
        self.calls: dict[str, Counter[str]] = {}

    def run(self) -> None:
        workers = [
            threading.Thread(target=self._work, name=f"build-{number}")
            for number in range(self.pool.options.size)
        ]
        for worker in workers:
            worker.start()
        try:
            with self.changed:
                while not self.schedule.ended:
                    self.changed.wait(_POLL)
        finally:
            self._stop()
            for worker in workers:
                worker.join()
            states = self.schedule.states
            self.outcome.stopped = [name for name in states if states[name] == "stopped"]

    def _stop(self) -> None:
        """Nothing more starts, and what runs is cancelled."""
        with self.changed:
            self.stopped = True
            self.schedule.stop()
            running = list(self.sandboxes.values())
            self.changed.notify_all()
        for sandbox in running:
            with contextlib.suppress(GuestctlError):
                sandbox.stop()

    def _work(self) -> None:
        """What each thread does: takes a component, builds it, says how that went."""
        while (name := self._next()) is not None:
            begin = self.begun[name] = time.monotonic()
            try:
                self._ensure(name)
            except GuestLost as error:
                self._lost(name, error, begin)
            except GuestctlError as error:
                self._failed(name, str(error), begin)
            except Exception as error:
                self._failed(name, f"{name}: {type(error).__name__}: {error}", begin)
                raise
            else:
                self._done(name, begin)
            finally:
                self.begun.pop(name, None)

    def _next(self) -> str | None:
        """The next component, or None when nothing is left to start."""
        with self.changed:
            while not self.schedule.ended:
                name = self.schedule.start()
                if name is not None:
                    return name
                self.changed.wait(_POLL)
            return None

    # --- how it went ------------------------------------------------------------------------------

    def _done(self, name: str, begin: float) -> None:
        with self.changed:
            self.schedule.done(name)
            self.outcome.built.append(name)
            self.changed.notify_all()
        self._say("done", name, begin=begin)

    def _lost(self, name: str, error: GuestLost, begin: float) -> None:
        """Its guest died: again, in another one, but not for ever."""
        self.losses[name] = self.losses.get(name, 0) + 1
        if self.losses[name] >= _LOSSES:
            self._failed(name, f"{name}: lost its guest {_LOSSES} times: {error}", begin)
            return
        with self.changed:
            if self.stopped:
                self.schedule.states[name] = "stopped"
            else:
                self.schedule.lost(name)
            self.changed.notify_all()
        self._say("lost", name, str(error), begin=begin)

    def _failed(self, name: str, why: str, begin: float) -> None:
        with self.changed:
            if self.stopped:
                self.schedule.states[name] = "stopped"
                self.changed.notify_all()
                return
            stopped = self.schedule.failed(name)
            self.outcome.failed[name] = why
            if not self.keep_going:
                self.schedule.stop()
            self.changed.notify_all()
        self._say("failed", name, why, begin=begin)
        for other in stopped:
            self._say("stopped", other, f"needs {name}")

    def _say(
        self, kind: str, name: str, text: str = "", *, guest: str = "", begin: float | None = None
    ) -> None:
        now = time.monotonic()
        seconds = 0.0 if begin is None else now - begin
        with self.changed:
            elapsed = {other: now - since for other, since in self.begun.items()}
            rest = self.schedule.rest(self.pool.options.size, elapsed)
        calls = dict(self.calls.get(name, Counter()))
        self.builder.tell(Event(kind, name, text, guest, seconds, rest, calls))

    # --- one component ----------------------------------------------------------------------------

    def _ensure(self, name: str) -> None:
        """Builds a component, unless another builder does so at the same time."""
        builder = self.builder
        with builder.store.building(
            builder.planner.key(name),
            lambda: self.stopped,
            lambda: self._say("waits", name, "another builder has it"),
        ) as ours:
            if self.stopped:
                raise BuildError(f"{name}: stopped")
            if ours:
                self._build(name)

    def _build(self, name: str) -> None:
        begin = time.monotonic()
        with (
            tempfile.TemporaryDirectory(prefix=f"{name}.", dir=self.builder.scratch) as scratch,
            self._source(name, Path(scratch)) as (source, identity),
            self.pool.lease(timeout=_LEASE_TIMEOUT, fresh=True) as guest,
        ):
            self._say("start", name, guest=guest.name, begin=begin)
            self._in_guest(name, guest, source, identity, Path(scratch))

    def _in_guest(
        self, name: str, guest: Guest, source: Path | None, identity: str, scratch: Path
    ) -> None:
        builder, planner = self.builder, self.builder.planner
        log = builder.logs / f"{name}.log"
        self.outcome.logs[name] = log
        begin = time.monotonic()
        job = self._job(name, source)
        if not job.sysroot:
            self.outcome.bare.add(name)
        rules = Rules(name, job.component.chunk.products)
        with open(log, "wb", buffering=0) as out:
            sandbox = Sandbox(
                guest, job, out, lambda step: self._say("step", name, step, begin=begin)
            )
            self.sandboxes[name] = sandbox
            try:
                sandbox.build(scratch / TAR, *([scratch / _PLAIN] if rules.parts else []))
            finally:
                self.calls[name] = sandbox.calls
                del self.sandboxes[name]
        self._check_share(name, sandbox)
        parts = split(scratch / _PLAIN, rules, scratch, EPOCH) if rules.parts else {}
        facts = manifest.describe(
            planner.components[name],
            planner.inputs[name],
            scratch / TAR,
            source=identity,
            seconds=sandbox.seconds,
            guest=guest.name,
            ledger=dict(sandbox.calls),
            local=dict(sandbox.reasons.most_common(_REASONS)),
        )
        with open(log, "rb") as text, gzip.open(scratch / LOG, "wb") as packed:
            packed.writelines(text)
        files = {path.name: path for path in (scratch / TAR, scratch / LOG, *parts.values())}
        builder.store.put(planner.key(name), files, facts)

    def _check_share(self, name: str, sandbox: Sandbox) -> None:
        """Raises BuildError when too much of the compiling was done in the guest."""
        bound = self.builder.max_local
        calls, local = sandbox.calls.total(), sandbox.calls["guest"]
        if bound is None:
            return
        if sandbox.guest.offload is None:
            raise BuildError(f"{name}: the host compiles nothing: offload is off")
        if 100 * local > bound * calls:
            raise BuildError(f"{name}: {local} of {calls} calls ran in the guest, {bound:g} % may")

    def _job(self, name: str, source: Path | None) -> Job:
        """What the sandbox needs; raises BuildError when an artifact of the sysroot is gone."""
        planner, store = self.builder.planner, self.builder.store
        component = planner.components[name]
        sysroot = []
        for need in planner.order:
            if need in planner.inputs[name].sysroot:
                artifact = store.get(planner.key(need))
                if artifact is None:
                    raise BuildError(f"{name}: the artifact of {need} is gone or damaged")
                sysroot.append(artifact.tar)
        patches = tuple((planner.patch(each.file), each.strip) for each in component.chunk.patches)
        return Job(component, source, tuple(sysroot), patches, planner.platform.triplet)

    @contextlib.contextmanager
    def _source(self, name: str, scratch: Path) -> Iterator[tuple[Path | None, str]]:
        """The source of a component, and its commit or SHA-256."""
        chunk, sources = self.builder.planner.components[name].chunk, self.builder.sources
        if chunk.tarball:
            yield sources.tarball(chunk), chunk.sha256
        elif chunk.repo:
            commit = sources.commit(chunk)
            with sources.checkout(chunk, commit, scratch) as folder:
                yield folder, commit
        else:
            yield None, ""
