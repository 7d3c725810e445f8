"""Spares: guests of a pool that are ready and that nobody has used, for the next fresh lease.

There is no daemon that keeps them. Whoever takes one starts a process for a moment, detached, which
makes its successor: of a guest that was used and is free, or as one more. It holds the lease of
what it makes; killed on the way, it leaves a guest that counts as lost, and the next one mends it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from guestctl.errors import GuestctlError
from guestctl.facts import is_lost, live_jobs, state_of
from guestctl.journal import record
from guestctl.places import Places
from guestctl.plan import PoolOptions, available_memory, base_of, need_of, own_shares
from guestctl.rundir import GuestDir, PoolDir, flocked, private
from guestctl.separate import new_interpreter
from guestctl.spec import GuestSpec
from guestctl.stock import Stock

__all__ = [
    "call_for_spares",
    "fresh_guests",
    "main",
    "no_more_spares",
    "ready_spares",
    "wanted_spares",
]

# One where the pool may have it: a fresh lease takes a guest at a time.
_USUAL = 1
_LOCK_TIMEOUT = 120.0
_LOCK_POLL = 0.01


def wanted_spares(options: PoolOptions) -> int:
    """How many a pool should have, memory permitting.

    Where the shares are the user's, which guest comes next is not all the same to him, and there
    are none unless he has asked for them.
    """
    if options.spares is not None:
        return options.spares
    return 0 if options.share is not None or options.single else _USUAL


def ready_spares(pool: PoolDir) -> list[GuestDir]:
    """Those that a fresh lease would get at once."""
    return [
        folder
        for folder in fresh_guests(pool)
        # Who has made one holds its lease for a moment more.
        if state_of(folder) == "ready" and folder.leased_by() is None
    ]


def fresh_guests(pool: PoolDir) -> list[GuestDir]:
    """Guests that nobody has used, and that are ready or will be."""
    return [folder for folder in pool.guests() if not folder.used.exists() and not is_lost(folder)]


def call_for_spares(pool: PoolDir, options: PoolOptions) -> None:
    """Starts what makes spares, unless there are enough; does not wait for it."""
    if len(fresh_guests(pool)) >= wanted_spares(options):
        return
    log_path = pool.path / "spares.log"
    with contextlib.suppress(OSError), open(log_path, "ab", opener=private) as log:
        subprocess.Popen(
            new_interpreter("guestctl.spares", str(pool.path)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )


def _waited_lock(path: Path, seconds: float) -> int | None:
    """As `flocked`, but waits for it up to so long. Raises OSError."""
    deadline = time.monotonic() + seconds
    while True:
        # Never made here: the pool may be going down, and its folder with it.
        handle = flocked(path, create=False)
        if handle is not None or time.monotonic() > deadline:
            return handle
        time.sleep(_LOCK_POLL)


@contextlib.contextmanager
def _making(pool: PoolDir) -> Iterator[bool]:
    """One process at a time; False: another has had it for too long."""
    handle = _waited_lock(pool.spares, _LOCK_TIMEOUT)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def no_more_spares(pool: PoolDir) -> None:
    """Waits for whoever makes one; the caller has said that the pool is ending."""
    with contextlib.suppress(OSError), _making(pool):
        return


def main(path: str) -> None:
    """The entry of the process that makes spares for the pool at `path`."""
    # All that it makes is the user's alone.
    os.umask(0o077)
    pool = PoolDir(Path(path))
    with contextlib.suppress(FileNotFoundError), _making(pool) as ours:
        while ours and _make_one(pool):
            pass


def _make_one(pool: PoolDir) -> bool:
    """Makes one more, if one is wanted and there is room; says whether it did."""
    facts = pool.spec()
    owner = pool.owner()
    if not facts or pool.ending.exists() or (owner is not None and not owner.alive()):
        return False
    options = PoolOptions(**facts["options"])
    if len(fresh_guests(pool)) >= wanted_spares(options):
        return False
    found = _additional(pool, options) or _worn(pool)
    if found is None:
        return False
    folder, lease = found
    try:
        spec = GuestSpec(**folder.spec())
        places = Places(Path(spec.cache), Path(spec.runtime), Path(), Path())
        stock = Stock(pool, options, places, progress=lambda _text: None, forks=True)
        stock.replace(folder, fresh=True)
    except GuestctlError as error:
        record(pool.journal, "spare", guest=folder.name, cause=str(error))
        return False
    finally:
        os.close(lease)
    record(pool.journal, "spare", guest=folder.name)
    return True


def _worn(pool: PoolDir) -> tuple[GuestDir, int] | None:
    """A guest that was used, is free and has no orphan, with its lease: those first that were
    thrown away.
    """
    used = [folder for folder in pool.guests() if folder.used.exists() or is_lost(folder)]
    for folder in sorted(used, key=lambda folder: not _thrown_away(folder)):
        if folder.spec().get("member"):
            continue
        lease = flocked(folder.lease)
        if lease is None:
            continue
        with contextlib.suppress(GuestctlError, OSError):
            if is_lost(folder) or not live_jobs(folder):
                return folder, lease
        os.close(lease)
    return None


def _thrown_away(folder: GuestDir) -> bool:
    """Whether it was leased to be used once."""
    try:
        return folder.used.read_text(encoding="ascii") == "fresh"
    except FileNotFoundError:
        return False


def _additional(pool: PoolDir, options: PoolOptions) -> tuple[GuestDir, int] | None:
    """A folder for one more guest, with its lease, while the pool may have more and memory is left.

    It counts as a guest that has stopped, until there is one.
    """
    folders = pool.guests()
    specs = [GuestSpec(**folder.spec()) for folder in folders]
    models = [spec for spec in specs if not spec.member]
    if not models or len(models) >= options.size + wanted_spares(options):
        return None
    if available_memory() < need_of(models[0].memory):
        return None
    number = 1 + max(int(folder.name[1:]) for folder in folders)
    name = f"g{number}"
    own = own_shares(Path(models[0].cache), pool.name)
    work = (own if options.share is None else Path(options.share)) / name
    base = base_of(own, name)
    for tree in (work, base):
        tree.mkdir(mode=0o700, exist_ok=True)
    folder = pool.guest(name)
    made = folder.path.with_name(f".{name}.{os.getpid()}")
    made.mkdir(mode=0o700)
    spec = replace(models[0], name=name, hostname=name, work=str(work), base=str(base))
    GuestDir(made).write_spec(spec.__dict__)
    GuestDir(made).write_state(
        {"name": name, "arch": spec.arch, "state": "stopped", "cause": "it has not been started"}
    )
    lease = flocked(made / "lease")
    assert lease is not None
    os.rename(made, folder.path)
    return folder, lease
