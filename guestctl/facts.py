"""What a guest is doing, seen from outside: by its run directory, and by its agent when free."""

from __future__ import annotations

import os
from typing import Any

from guestctl.errors import GuestctlError
from guestctl.jobs import JobBook, read_jobs
from guestctl.journal import record
from guestctl.rundir import GuestDir, flocked, write_json
from guestctl.sockets import connected_socket

__all__ = ["guest_facts", "is_lost", "live_jobs", "orphans", "state_of"]

_PROBE_TIMEOUT = 5.0


def guest_facts(folder: GuestDir) -> dict[str, Any]:
    """One guest's part of `pool status --json`."""
    spec = folder.spec()
    state = folder.state()
    lease = folder.leased_by()
    name = state_of(folder)
    jobs = []
    written = read_jobs(folder)
    if name == "ready" and lease is not None:
        name = "leased"
        jobs = written.get("jobs", [])
    elif name == "ready" and written:
        jobs = orphans(folder)
        name = "orphaned" if jobs else name
    return {
        "name": folder.name,
        "state": name,
        "fresh": name == "ready" and not folder.used.exists(),
        "qemu_pid": state.get("qemu_pid"),
        "lease": lease,
        "job": jobs[-1]["name"] if jobs else None,
        "jobs": jobs,
        "guest_memory": written.get("memory", []),
        "arch": state.get("arch"),
        "accelerator": state.get("accelerator"),
        "cpu": state.get("cpu"),
        "memory": state.get("memory"),
        "confinement": state.get("confinement"),
        "boot_seconds": state.get("boot_seconds"),
        "start": state.get("start"),
        "start_reason": state.get("start_reason", ""),
        "pace": state.get("pace"),
        "cause": state.get("cause", ""),
        "share": spec.get("work"),
        "offload": spec.get("offload"),
        "offload_reason": spec.get("offload_reason"),
    }


def state_of(folder: GuestDir) -> str:
    """What its supervisor last said of the guest, unless that is dead itself."""
    name = str(folder.state().get("state", "starting"))
    supervisor = folder.supervisor()
    if name in ("ready", "booting") and not (supervisor and supervisor.alive()):
        return "lost"
    return name


def is_lost(folder: GuestDir) -> bool:
    """Whether the guest has ended, by itself or with its supervisor."""
    return state_of(folder) in ("lost", "stopped")


def orphans(folder: GuestDir) -> list[dict[str, Any]]:
    """The jobs that a dead holder has left in a guest, by what it wrote and what the agent says.

    Asks the agent, which takes the lease for a moment; a guest that is taken has no orphans.
    """
    written = read_jobs(folder)
    if not written:
        return []
    lease = flocked(folder.lease)
    if lease is None:
        return []
    try:
        live = live_jobs(folder)
        left = [job for job in written.get("jobs", []) if job["id"] in live]
        _mind(folder, written, left)
        return left
    except (GuestctlError, OSError):
        # Lost, or about to be: its supervisor will say so.
        return []
    finally:
        os.close(lease)


def live_jobs(folder: GuestDir) -> tuple[int, ...]:
    """The jobs that the agent has; the caller holds the lease. Raises GuestLost, OSError."""
    from guestctl.agent import Agent  # not before it is needed: it takes time

    spec = folder.spec()
    orderly = folder.take_orderly()
    agent = Agent.connect(
        connected_socket(folder.agent),
        timeout=_PROBE_TIMEOUT,
        orphan=0,
        hangs_up=spec["channel"] == "virtio",
        orderly=orderly,
    )
    agent.close()
    if not spec.get("member"):
        # A greeting was sent, and answered.
        folder.mark_orderly()
    return agent.welcome.jobs if agent.welcome else ()


def _mind(folder: GuestDir, written: dict[str, Any], left: list[dict[str, Any]]) -> None:
    """Brings what is written in line with what is true; the caller holds the lease."""
    if not left:
        JobBook(folder).expire()
    elif not written.get("orphaned"):
        write_json(folder.jobs, {**written, "jobs": left, "orphaned": True})
        for job in left:
            record(folder.journal, "orphan", guest=folder.name, job=job["name"])
