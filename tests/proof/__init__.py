"""What takes too long for `make test`, done once and written down: `make proof`.

A proof is a module `proof_NAME` with a `TITLE` and a function `prove(proof)`. It works in a folder
of its own that stays, so that what was interrupted goes on where it was, and ends by stating facts;
these go to docs/proof/NAME.md with the date, the commit and the machine, and are committed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from guestctl.places import Places

__all__ = ["Enough", "NotHere", "Proof"]

ROOT = Path(__file__).parent.parent.parent


class NotHere(Exception):
    """This machine lacks what a proof needs: what was written before stays."""


class Enough(Exception):
    """The time that this run was given is over: the next one goes on."""


class Proof:
    """One run of a proof: where it works, and what it has found so far. After `seconds` it begins
    no further step."""

    def __init__(self, name: str, title: str, seconds: float = float("inf")) -> None:
        self._until = time.monotonic() + seconds
        self.name = name
        self.title = title
        self.places = Places.of_user()
        self.folder = self.places.cache / "proof" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._facts: list[tuple[str, object]] = []
        self._seconds: list[tuple[str, float]] = []

    def step(self, name: str, work: Callable[[], object]) -> None:
        """Does `work` unless an earlier run of this proof has; its time is kept with it."""
        done = self.folder / f"{name.replace(' ', '-')}.done"
        if not done.exists():
            if time.monotonic() > self._until:
                raise Enough(name)
            print(f"{self.name}: {name}", flush=True)
            begin = time.monotonic()
            work()
            done.write_text(json.dumps(round(time.monotonic() - begin, 1)))
        self._seconds.append((name, json.loads(done.read_text())))

    def forget(self) -> None:
        """The next run begins anew, but for what it fetched."""
        for done in self.folder.glob("*.done"):
            done.unlink()

    def fact(self, what: str, value: object) -> None:
        print(f"{self.name}: {what}: {value}", flush=True)
        self._facts.append((what, value))

    def write(self) -> Path:
        """Writes docs/proof/NAME.md."""
        lines = [f"# {self.title}", "", *_where(), "", "| what | found |", "|---|---|"]
        lines += [f"| {what} | {value} |" for what, value in self._facts]
        if self._seconds:
            lines += ["", "| step | seconds |", "|---|---|"]
            lines += [f"| {name} | {seconds} |" for name, seconds in self._seconds]
        path = ROOT / "docs" / "proof" / f"{self.name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        return path


def _where() -> list[str]:
    git = ["git", "-c", "safe.directory=*", "-C", str(ROOT)]
    commit = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    machine = f"{os.cpu_count()} × {model}, {memory} GiB, Linux {platform.release()}"
    return [
        f"`make proof` wrote this on {date}, at commit {commit or 'unknown'}, on {machine}; "
        f"Python {platform.python_version()}."
    ]
