"""What a build says while it goes on, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from guestctl.builder.store import Artifact
from guestctl.errors import BuildError

__all__ = ["Event", "Outcome"]


@dataclass(frozen=True)
class Event:
    """Something happened to the component `name`.

    `kind` is start, step, done, failed, stopped, lost or waits (for another builder). `text` says
    more; `seconds` is the time since its start. `rest` is what the build takes at least from here,
    by what components took last time. `calls` says how many calls of compilers ran where.
    """

    kind: str
    name: str
    text: str = ""
    guest: str = ""
    seconds: float = 0.0
    rest: float = 0.0
    calls: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Outcome:
    """How a build ended, by the names of components; `failed` says why, `logs` where it is told,
    and `bare` names those that had nothing in their sysroots.
    """

    cached: list[str] = field(default_factory=list)
    built: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    logs: dict[str, Path] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)

    def check(self) -> Outcome:
        """Returns itself when all was built; raises BuildError otherwise."""
        for name, why in self.failed.items():
            more = f" (and {len(self.failed) - 1} more)" if len(self.failed) > 1 else ""
            log = self.logs.get(name)
            raise BuildError(f"{why}{more}", hint=self._hint(name, log) if log else "")
        if self.stopped:
            raise BuildError(f"not built: {', '.join(self.stopped)}")
        return self

    def _hint(self, name: str, log: Path) -> str:
        if name in self.bare:
            return f"the log is {log}; the sysroot of {name} was empty, without a C library"
        return f"the log is {log}"
