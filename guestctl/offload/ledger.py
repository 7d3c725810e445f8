"""The ledger: every call of a tool, where it ran and why, as lines of JSON; and their sum."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from guestctl.errors import OffloadError

__all__ = [
    "LEDGER_MAX",
    "Entry",
    "JobRecord",
    "Ledger",
    "Summary",
    "read_jobs",
    "read_ledger",
    "saved",
    "summarize",
]

LEDGER_MAX = 256 << 20  # bytes; a build that makes more calls loses the last ones' entries
# How much slower the guest is at the same work, where nothing in the ledger tells: measured for
# cc1 on ARMv5 (docs/offload.md).
_SLOWER = 30.0
_COLUMNS = ("calls", "local", "seconds", "host", "waited", "transfer", "share")


@dataclass(frozen=True)
class Entry:
    """One call. Times in seconds; `where` is offload, distcc or guest.

    `seconds` is what the caller waited, `host` what the tool took on the host, `waited` the time
    for a slot, `share` what the guest took to write files to the share, those before the call
    included. `read` is the size of standard input, `written` of all that came back. `session` is
    when the lease began: job numbers begin anew in a fresh guest. `compile_host` is the machine
    that compiled, where it was another one.
    """

    where: str
    guest: str
    job: int
    tool: str
    step: str
    argv: list[str]
    cwd: str
    status: int | None
    reason: str = ""
    begin: float = 0.0
    seconds: float = 0.0
    host: float = 0.0
    waited: float = 0.0
    share: float = 0.0
    read: int = 0
    written: int = 0
    session: float = 0.0
    compile_host: str = ""


@dataclass(frozen=True)
class JobRecord:
    """The end of a command that has called tools. Times in seconds, `begin` since the epoch."""

    guest: str
    job: int
    argv: list[str]
    status: int
    begin: float
    seconds: float
    session: float = 0.0


class Ledger:
    """Appends entries to a file; several processes may write the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._tallies: dict[int, Counter[str]] = {}
        self._reasons: dict[int, Counter[str]] = {}
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def add(self, entry: Entry | JobRecord) -> None:
        """Writes one record: one line in one write, so that writers do not mix."""
        line = json.dumps(asdict(entry), ensure_ascii=True).encode() + b"\n"
        with self._lock:
            if isinstance(entry, Entry) and entry.where == "guest":
                self._reasons.setdefault(entry.job, Counter())[entry.reason] += 1
            if self._handle >= 0 and os.fstat(self._handle).st_size < LEDGER_MAX:
                os.write(self._handle, line)

    def count(self, job: int, where: str, calls: int = 1) -> None:
        """Counts a call of a job before it is answered, and so before the job can end."""
        with self._lock:
            self._tallies.setdefault(job, Counter())[where] += calls

    def tally(self, job: int) -> Counter[str]:
        """How many calls of a job ran where, as far as this process has served them."""
        with self._lock:
            return Counter(self._tallies.get(job, {}))

    def reasons(self, job: int) -> Counter[str]:
        """Why calls of a job ran in the guest. One that has just ended may not be there yet."""
        with self._lock:
            return Counter(self._reasons.get(job, {}))

    def close(self) -> None:
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
            self._handle = -1


@dataclass(frozen=True)
class Summary:
    """What a ledger comes to. Times in seconds, sizes in bytes.

    `compile_hosts` counts the calls that other machines compiled.

    `saved` is an estimate: what the accelerated calls would have taken in the guest, less what
    they took. `steps` splits calls and the time that their callers waited: `host` is the tools'
    own, `waited` that for a slot, and `transfer` all the rest of calls that the host carried out:
    stub, channel, and `share`, the files. `local` counts those that ran in the guest.
    """

    calls: int
    where: dict[str, int]
    percent_accelerated: float
    percent_local: float
    saved: float
    steps: dict[str, dict[str, float]]
    reasons: list[tuple[str, int]]
    read: int
    written: int
    compile_hosts: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """As `offload report --json` prints it."""
        facts = asdict(self)
        facts["reasons"] = [{"reason": text, "calls": n} for text, n in self.reasons]
        return facts


def read_ledger(path: Path) -> list[Entry]:
    """The entries of a ledger; raises OffloadError. A line that was cut off is left out."""
    return [Entry(**facts) for facts in _lines(path, Entry) if "where" in facts]


def read_jobs(path: Path) -> list[JobRecord]:
    """The commands of a ledger that have ended; raises OffloadError."""
    return [JobRecord(**facts) for facts in _lines(path, JobRecord)]


def _lines(path: Path, kind: type[Entry | JobRecord]) -> Iterator[dict[str, Any]]:
    """What a ledger says of one kind of record."""
    known = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    entry = kind is Entry
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise OffloadError(f"{path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            facts = json.loads(line)
            # A call says where it ran, the end of a command does not.
            if ("where" in facts) != entry:
                continue
            if missing := needed - set(facts):
                raise ValueError(f"it lacks {sorted(missing)[0]}")
        except (ValueError, TypeError) as error:
            raise OffloadError(f"{path}: line {number} is no entry: {error}") from None
        yield {name: facts[name] for name in known if name in facts}


def saved(entries: Iterable[Entry]) -> float:
    """An estimate of the seconds that accelerated calls would have taken longer in the guest."""
    remote = [entry for entry in entries if entry.where != "guest"]
    return max(0.0, sum(_SLOWER * entry.host - entry.seconds for entry in remote))


def summarize(entries: Iterable[Entry]) -> Summary:
    """Adds a ledger up."""
    every = list(entries)
    where = Counter(entry.where for entry in every)
    remote = [entry for entry in every if entry.where != "guest"]
    local = [entry for entry in every if entry.where == "guest"]
    steps: dict[str, dict[str, float]] = {}
    for entry in every:
        row = steps.setdefault(entry.step, dict.fromkeys(_COLUMNS, 0.0))
        row["calls"] += 1
        row["seconds"] += entry.seconds
        row["host"] += entry.host
        row["waited"] += entry.waited
        row["share"] += entry.share
        if entry.where == "guest":
            row["local"] += 1
        else:
            row["transfer"] += entry.seconds - entry.host - entry.waited
    for row in steps.values():
        row.update({name: round(value, 6) for name, value in row.items()})
        row.update(calls=int(row["calls"]), local=int(row["local"]))
    total = len(every)
    return Summary(
        calls=total,
        where={name: where.get(name, 0) for name in ("offload", "distcc", "guest")},
        percent_accelerated=100 * len(remote) / total if total else 0.0,
        percent_local=100 * len(local) / total if total else 0.0,
        saved=saved(remote),
        steps=steps,
        reasons=Counter(entry.reason for entry in local if entry.reason).most_common(10),
        read=sum(entry.read for entry in every),
        written=sum(entry.written for entry in every),
        compile_hosts=dict(Counter(e.compile_host for e in every if e.compile_host)),
    )
