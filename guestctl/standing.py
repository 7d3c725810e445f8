"""What a supervisor says of its guest: state.json, the pool's events, and why it ended."""

from __future__ import annotations

import os
import time
from typing import Any

from guestctl.journal import record
from guestctl.processes import ProcessId
from guestctl.qemu.spawn import Running
from guestctl.rundir import GuestDir
from guestctl.spec import GuestSpec

__all__ = ["Standing"]

# What the console says, and what that means.
_CAUSES = (
    (b"Kernel panic", "its kernel panicked"),
    (b"guestctl: agent died", "its agent died"),
    (b"guestctl: clean stop", "it was powered off"),
)
# States that have another name as events.
_EVENTS = {"booting": "boot"}


class Standing:
    """The facts that are known so far; `tell` writes them down."""

    def __init__(self, folder: GuestDir, spec: GuestSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._told = ""
        self._facts: dict[str, Any] = {
            "name": folder.name,
            "arch": spec.arch,
            "accelerator": spec.accelerator,
            "cpu": spec.cpu,
            "memory": spec.memory,
            "confinement": {
                "seccomp": True,
                "namespaces": spec.namespaces,
                "reason": spec.unconfined_reason,
                "group": "",
            },
        }

    def note(self, **facts: Any) -> None:
        """For the next time that something is told."""
        self._facts.update(facts)

    def bounded(self, group: str) -> None:
        """The control group that bounds its QEMU, where there is one."""
        self._facts["confinement"]["group"] = group

    def tell(self, state: str, running: Running | None, **facts: Any) -> None:
        """The state, with all that is known, and once as an event."""
        self._facts.update(state=state, since=time.time(), **facts)
        for name, pid in (
            ("supervisor", os.getpid()),
            ("qemu", running.pid if running else 0),
            ("holder", running.process.pid if running else 0),
        ):
            try:
                known = ProcessId.of(pid)
            except ProcessLookupError:
                continue
            self._facts[f"{name}_pid"] = known.pid
            self._facts[f"{name}_start"] = known.start
        self._folder.write_state(self._facts)
        if state != self._told:
            self._told = state
            told = {name: facts[name] for name in ("cause", "boot_seconds") if facts.get(name)}
            record(self._folder.journal, _EVENTS.get(state, state), guest=self._spec.name, **told)

    def cause(self, status: int | None, known: str, otherwise: str) -> str:
        """Why a QEMU with that exit status has ended: what is `known`, or what it looks like."""
        if status is None:
            return "QEMU was killed and does not end"
        known = known or self._folder.condemnation()
        if known:
            return known
        tail = self._folder.console_tail().encode()
        for mark, meaning in _CAUSES:
            if mark in tail:
                return meaning
        number = -status if status < 0 else status - 128 if status > 128 else 0
        if number:
            return f"QEMU was ended by signal {number}"
        if status:
            log = (self._folder.path / "qemu.log").read_text(errors="replace").strip()
            last = log.splitlines()[-1] if log else "it said nothing"
            return f"QEMU failed with status {status}: {last}"
        return otherwise or "QEMU ended"
