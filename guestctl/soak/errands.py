"""The jobs of a soak: what each does in a guest, and how one tells that it was done.

An errand returns when all was as it must be, and raises Wrong when a guest reported something
else; GuestLost passes through it.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from guestctl.errors import GuestLost
from guestctl.guest import Guest
from guestctl.spec import Result

__all__ = ["ERRANDS", "Errand", "Wrong"]

_TIMEOUT = 300.0
_IDLE = 20.0


class Wrong(Exception):
    """Something was reported that is not so."""


@dataclass(frozen=True)
class Errand:
    """`weight`: how often, against the others. `fresh`: it leaves a guest that is of no more use.

    `fatal`: it ends its guest, and a loss is its outcome.
    """

    work: Callable[[Guest, random.Random], None]
    weight: int
    fresh: bool = False
    fatal: bool = False


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise Wrong(f"{what}: {found!r:.200} instead of {wanted!r:.200}")


def _ended(result: Result, outcome: str, status: int) -> None:
    _expect(" ".join(map(repr, result.argv))[:80], (result.outcome, result.status),
            (outcome, status))  # fmt: skip


def _shell(guest: Guest, script: str, **options: object) -> Result:
    limits = {"timeout": _TIMEOUT, "idle_timeout": _IDLE, **options}
    return guest.run(["sh", "-c", script], **limits)  # type: ignore[arg-type]


def _streams(guest: Guest, rng: random.Random) -> None:
    """Bytes in and out again, and a status of its own."""
    data = rng.randbytes(rng.randrange(1, 1 << 18))
    status = rng.randrange(256)
    result = _shell(guest, f"cat; exit {status}", stdin=data)
    _ended(result, "exited", status)
    _expect("what came back", result.stdout, data)


def _files(guest: Guest, rng: random.Random) -> None:
    """Files in the share: all of them are there when it is the host's again, or it is dirty."""
    name = f"soak-{rng.getrandbits(48):x}"
    count, size = rng.randrange(1, 40), rng.randrange(1, 1 << 14)
    byte = rng.choice("abcdef")
    script = (
        f"mkdir {name} && cd {name} && i=0; while [ $i -lt {count} ]; do "
        f"head -c {size} /dev/zero | tr '\\0' {byte} >f$i && i=$((i+1)) || exit 9; done"
    )
    work = guest.work.path
    before = guest.work.dirt
    try:
        with guest.mounted():
            result = _shell(guest, script, cwd="/work")
        _ended(result, "exited", 0)
        whole = hashlib.sha256(byte.encode() * size).digest()
        for number in range(count):
            _expect(f"file {number}", _digest(work / name / f"f{number}"), whole)
        _expect("the dirt", guest.work.dirt, before)
    except GuestLost as error:
        if "marked as dirty" in error.hint and not guest.work.dirt:
            raise Wrong("a share whose guest died is not dirty") from error
        raise
    finally:
        _clear(work, name)


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except FileNotFoundError:
        return b""


def _clear(work: Path, name: str) -> None:
    shutil.rmtree(work / name, ignore_errors=True)
    with suppress(FileNotFoundError):
        (work / ".virtfs_metadata" / name).unlink()


def _several(guest: Guest, rng: random.Random) -> None:
    """Commands side by side, each with its own status and output."""
    numbers = [rng.randrange(100) for _ in range(rng.randrange(2, 6))]
    running = [
        guest.start(["sh", "-c", f"echo {n}; exit {n}"], timeout=_TIMEOUT, idle_timeout=_IDLE)
        for n in numbers
    ]
    for number, process in zip(numbers, running, strict=True):
        result = process.wait()
        _ended(result, "exited", number)
        _expect("its output", result.stdout, b"%d\n" % number)


def _much(guest: Guest, rng: random.Random) -> None:
    """More output than any buffer holds, taken by a slow reader."""
    count = rng.randrange(20000, 200000)
    result = guest.run(["seq", str(count)], timeout=_TIMEOUT, idle_timeout=_IDLE)
    _ended(result, "exited", 0)
    _expect("lines", result.stdout.count(b"\n"), count)


def _stubborn(guest: Guest, rng: random.Random) -> None:
    """It ignores signals, has a daemon and an open file, and is killed by its time-out."""
    script = (
        "trap '' TERM INT HUP; setsid sh -c 'exec >/dev/null 2>&1; sleep 4321' & "
        "exec 3>/tmp/open; sleep 1000"
    )
    _ended(_shell(guest, script, timeout=rng.uniform(0.2, 1.0)), "timeout", 124)


def _silent(guest: Guest, rng: random.Random) -> None:
    limit = rng.uniform(0.3, 1.0)
    _ended(_shell(guest, "sleep 1000", idle_timeout=limit), "timeout", 124)


def _cancelled(guest: Guest, rng: random.Random) -> None:
    process = guest.start(["cat", "/dev/zero"], timeout=_TIMEOUT)
    process.cancel()
    # It may not even have started.
    if process.wait().status == 0:
        raise Wrong("a cancelled command ended well")


def _bomb(guest: Guest, rng: random.Random) -> None:
    script = "b() { b | b & }; b; sleep 1000"
    result = _shell(guest, script, timeout=rng.uniform(1.0, 2.0), stderr=_Nowhere())
    _ended(result, "timeout", 124)


def _hungry(guest: Guest, rng: random.Random) -> None:
    """The kernel is out of memory, or told to act as if: it kills the command, and nothing else."""
    result = _shell(guest, "echo f >/proc/sysrq-trigger; exec sleep 1000")
    _ended(result, "signalled", 137)
    _ended(_shell(guest, "true"), "exited", 0)


def _full(guest: Guest, rng: random.Random) -> None:
    """The scratch disk is full: the command is told, the guest lives."""
    script = "fallocate -l 64G /tmp/all 2>/dev/null; echo x >/tmp/all2; cat /tmp/all2; rm -f /tmp/*"
    result = _shell(guest, script)
    _expect("its status", result.outcome, "exited")
    _ended(_shell(guest, "true"), "exited", 0)


def _noisy(guest: Guest, rng: random.Random) -> None:
    """The console is flooded; nobody waits for it."""
    script = "i=0; while [ $i -lt 300 ]; do echo noise $i noise noise noise; i=$((i+1)); done"
    _ended(_shell(guest, f"({script}) >/dev/kmsg"), "exited", 0)


def _wrong_clock(guest: Guest, rng: random.Random) -> None:
    """The clock jumps; nobody's time-outs follow it."""
    year = rng.choice((1970, 2001, 2037))
    _ended(_shell(guest, f"date -s {year}-01-01; sleep 0.2"), "exited", 0)
    _ended(_shell(guest, "true"), "exited", 0)


def _dies(letter: str) -> Callable[[Guest, random.Random], None]:
    def work(guest: Guest, rng: random.Random) -> None:
        _shell(guest, f"echo {letter} >/proc/sysrq-trigger; sleep 1000")
        raise Wrong("the guest outlived its end")

    return work


class _Nowhere:
    def write(self, data: bytes, /) -> None:
        return


ERRANDS: dict[str, Errand] = {
    "streams": Errand(_streams, 30),
    "files in the share": Errand(_files, 30),
    "several at once": Errand(_several, 10),
    "much output": Errand(_much, 4),
    "ignores signals": Errand(_stubborn, 4),
    "says nothing": Errand(_silent, 4),
    "cancelled": Errand(_cancelled, 4),
    "fork bomb": Errand(_bomb, 1, fresh=True),
    "out of memory": Errand(_hungry, 2),
    "full scratch disk": Errand(_full, 2),
    "console flood": Errand(_noisy, 2),
    "clock jumps": Errand(_wrong_clock, 3),
    "kernel panic": Errand(_dies("c"), 2, fatal=True),
    "agent killed": Errand(_dies("i"), 2, fatal=True),
}
