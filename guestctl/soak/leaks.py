"""What a pool may leave behind: processes, sockets, files, descriptors, threads, memory."""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from guestctl.places import Places
from guestctl.plan import own_shares
from guestctl.rundir import flocked

__all__ = ["Held", "held_by_us", "left_of_pool", "lock_names", "locks_left", "processes_of"]


@dataclass(frozen=True)
class Held:
    """What this process holds: descriptors, threads, and KiB of memory."""

    descriptors: int
    threads: int
    memory: int


def held_by_us() -> Held:
    gc.collect()
    return Held(len(os.listdir("/proc/self/fd")), threading.active_count(), _resident("self"))


def processes_of(name: str) -> list[int]:
    """The processes that name a pool: supervisors by its run directory, QEMUs by its shares."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        number = int(path.parent.name)
        if number != os.getpid() and any(f"/{name}/".encode() in word for word in words):
            found.append(number)
    return found


def locks_left(places: Places, before: set[str]) -> list[str]:
    """The locks of shares that have come since, and that nobody holds."""
    left = []
    for name in sorted(lock_names(places) - before):
        path = places.runtime / "locks" / name
        try:
            handle = flocked(path, create=False)
        except FileNotFoundError:
            continue
        if handle is not None:
            os.close(handle)
            left.append(str(path))
    return left


def lock_names(places: Places) -> set[str]:
    try:
        return set(os.listdir(places.runtime / "locks"))
    except FileNotFoundError:
        return set()


def left_of_pool(places: Places, name: str) -> list[str]:
    """What there is of a pool that is down, in words; nothing should be."""
    left = [f"process {number}" for number in processes_of(name)]
    left += [str(path) for path in (places.runtime / "pools").glob(f"*{name}*")]
    left += [str(path) for path in [own_shares(places.cache, name)] if path.exists()]
    wanted = f"/{name}/"
    with open("/proc/net/unix", encoding="ascii", errors="replace") as file:
        left += [f"socket {line.split()[-1]}" for line in file if wanted in line]
    return left


def _resident(pid: str) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 10
