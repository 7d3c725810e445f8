"""The run directory of a pool: what any process needs to find, lease and attach to its guests.

RUNTIME/pools/NAME/
    pool.json            what the pool was asked to be
    ending               there while the pool is taken down
    spares               flock: held by whoever makes a spare; spares.log: what it had to say
    seat0, ...           flock: each lease holds one, so that there are no more than guests
    events.jsonl         what happened in it, and events.jsonl.1 before that
    g0/, g1/, ...        one folder a guest
        guest.json       what the supervisor was told
        state.json       what it says: booting, ready, lost, stopped; replaced as a whole
        lease            flock: held by whoever uses the guest; text: the holder's pid
        jobs.json        what the holder runs, or has left running when it died
        agent, monitor   the sockets
        used             there when somebody has leased it; "fresh": it was to be used once
        condemned        why whoever leased the guest has ended it
        orderly          there while the agent has read all that it was ever sent
        console          the socket that takes what is typed into the console
        console.log      the kernel's console, and console.log.1 before it
        supervisor.log   what the supervisor had to say
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestctl.errors import PoolError, UsageError
from guestctl.places import private_directory
from guestctl.processes import ProcessId, processor_time

__all__ = [
    "GuestDir",
    "PoolDir",
    "flocked",
    "pool_names",
    "private",
    "read_json",
    "write_json",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_TAIL = 4096


def private(path: str, flags: int) -> int:
    """For `open`: a file that is made is the user's alone, whatever the umask."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, empty when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            facts = json.load(file)
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise PoolError(f"{path} is damaged: {error}") from None
    return facts if isinstance(facts, dict) else {}


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Replaces `path` as a whole, so that no reader sees half of it."""
    # A name for each thread: one that truncated what another is about to rename would empty it.
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}")
    with open(aside, "w", encoding="utf-8", opener=private) as file:
        json.dump(facts, file, indent=1)
        file.write("\n")
    os.replace(aside, path)


def flocked(path: Path, *, create: bool = True, shared: bool = False) -> int | None:
    """A descriptor that holds the lock of `path`, or None where another holds it.

    Who only wants to know takes it `shared`, and is not in the way of others who do.
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
            # Whoever held it before may have removed the file: then the lock is of no file at all.
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


@dataclass(frozen=True)
class GuestDir:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def agent(self) -> Path:
        return self.path / "agent"

    @property
    def monitor(self) -> Path:
        return self.path / "monitor"

    @property
    def console(self) -> Path:
        return self.path / "console.log"

    @property
    def boot_console(self) -> Path:
        """What the kernel of a clone said before it was one."""
        return self.path / "boot.log"

    @property
    def lease(self) -> Path:
        return self.path / "lease"

    @property
    def mounts(self) -> Path:
        """Lists what a lease holder has mounted, for the next one if it dies."""
        return self.path / "mounts.json"

    @property
    def jobs(self) -> Path:
        """What the lease holder runs, see guestctl.jobs."""
        return self.path / "jobs.json"

    @property
    def used(self) -> Path:
        """Its existence says that somebody has leased the guest since it came; it names the kind
        of that lease."""
        return self.path / "used"

    @property
    def orderly(self) -> Path:
        """Its existence says that the last session was read to its end, see Agent.settle."""
        return self.path / "orderly"

    def mark_orderly(self) -> None:
        # Without the mark the next session begins as after any other end.
        with suppress(OSError):
            self.orderly.touch(0o600)

    def take_orderly(self) -> bool:
        """Whether it was; a session begins, of whose end nothing is known yet."""
        try:
            self.orderly.unlink()
        except FileNotFoundError:
            return False
        return True

    @property
    def keyboard(self) -> Path:
        """The socket on which the supervisor takes what is to be typed into the console."""
        return self.path / "console"

    @property
    def journal(self) -> Path:
        """The pool's, see guestctl.journal."""
        return self.path.parent / "events.jsonl"

    @property
    def condemned(self) -> Path:
        """Says why whoever leased the guest has ended it."""
        return self.path / "condemned"

    def condemn(self, reason: str) -> None:
        """Ends a guest that nobody should use again; its supervisor records the reason."""
        with open(self.condemned, "w", encoding="utf-8", opener=private) as file:
            file.write(reason)
        qemu = self.qemu()
        if qemu is not None:
            qemu.send(signal.SIGKILL)

    def condemnation(self) -> str:
        """The reason that `condemn` was given, or nothing."""
        try:
            return self.condemned.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def spec(self) -> dict[str, Any]:
        return read_json(self.path / "guest.json")

    def state(self) -> dict[str, Any]:
        return read_json(self.path / "state.json")

    def write_spec(self, facts: dict[str, Any]) -> None:
        write_json(self.path / "guest.json", facts)

    def write_state(self, facts: dict[str, Any]) -> None:
        write_json(self.path / "state.json", facts)

    def console_tail(self) -> str:
        """The console's last lines, as text for people; a clone's begin before it was one."""
        data = b"".join(_end_of(path) for path in (self.boot_console, self.console))[-_TAIL:]
        return data.decode(errors="backslashreplace").replace("\r", "")

    def supervisor(self) -> ProcessId | None:
        return _process(self.state(), "supervisor")

    def qemu(self) -> ProcessId | None:
        return _process(self.state(), "qemu")

    def starvation(self) -> Callable[[], float]:
        """Counts the seconds for which the guest has waited for a processor."""
        qemu = self.qemu()
        return lambda: processor_time(qemu.pid)[1] if qemu else 0.0

    def leased_by(self) -> int | None:
        """The pid of the process that holds the lease, None where nobody does."""
        try:
            handle = flocked(self.lease, create=False, shared=True)
        except FileNotFoundError:
            return None
        if handle is not None:
            os.close(handle)
            return None
        text = self.lease.read_text(encoding="ascii", errors="replace").strip()
        return int(text) if text.isdigit() else 0


def _end_of(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL))
            return file.read()
    except FileNotFoundError:
        return b""


def _process(state: dict[str, Any], name: str) -> ProcessId | None:
    pid, start = state.get(f"{name}_pid"), state.get(f"{name}_start")
    return ProcessId(pid, start) if isinstance(pid, int) and isinstance(start, int) else None


@dataclass(frozen=True)
class PoolDir:
    path: Path

    @classmethod
    def named(cls, runtime: Path, name: str) -> PoolDir:
        """The run directory of pool `name`, which need not exist; UsageError for a bad name."""
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot name a pool",
                hint="use up to 32 letters, digits, dots, dashes and underscores",
            )
        return cls(runtime / "pools" / name)

    @property
    def name(self) -> str:
        return self.path.name

    def create(self) -> bool:
        """Makes the folder; says whether it was new."""
        private_directory(self.path.parent)
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            return False
        return True

    def spec(self) -> dict[str, Any]:
        return read_json(self.path / "pool.json")

    def write_spec(self, facts: dict[str, Any]) -> None:
        write_json(self.path / "pool.json", facts)

    def owner(self) -> ProcessId | None:
        """The process without which the pool has no reason to stay, where there is one."""
        spec = self.spec()
        if not spec.get("leashed"):
            return None
        return ProcessId(spec["creator_pid"], spec["creator_start"])

    @property
    def journal(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def ending(self) -> Path:
        """Its existence says that the pool is being taken down."""
        return self.path / "ending"

    @property
    def spares(self) -> Path:
        """A lock, held by whoever makes spares; there from the beginning."""
        return self.path / "spares"

    def seat(self, number: int) -> Path:
        """A lock that a lease holds: a pool has guests that are spare, but no more leases."""
        return self.path / f"seat{number}"

    def guest(self, name: str) -> GuestDir:
        return GuestDir(self.path / name)

    def guests(self) -> list[GuestDir]:
        """The guests' folders, in the order of their numbers."""
        try:
            found = [path for path in self.path.iterdir() if re.fullmatch(r"g\d+", path.name)]
        except FileNotFoundError:
            return []
        return [GuestDir(path) for path in sorted(found, key=lambda path: int(path.name[1:]))]

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def pool_names(runtime: Path) -> list[str]:
    """The names of the pools that have a run directory."""
    try:
        found = [path.name for path in (runtime / "pools").iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    # Others are still being made.
    return sorted(name for name in found if _NAME.fullmatch(name))
