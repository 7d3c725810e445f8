"""Thousands of sessions, one after the other, with a guest that has no time for them.

The busy loops are an orphan's, so that every session finds the agent starved. What the port tells
of coming and going is late then, see docs/decisions/0090-ends-of-sessions.md.
"""

from __future__ import annotations

import json
import time

from guestctl import Pool
from guestctl.agent import Agent
from guestctl.errors import GuestLost
from guestctl.processes import processor_time
from guestctl.rundir import GuestDir
from guestctl.sockets import connected_socket
from tests.proof import Proof

TITLE = "Every session is answered, however busy the guest"
ROUNDS = 10
SESSIONS = 500
LOOPS = 8
# Seconds in which the guest is let run; an answer takes a tenth of one.
PATIENCE = 10.0
HOUR = 3600.0


def session(folder: GuestDir, orderly: bool) -> float:
    """The seconds until a session was answered; raises GuestLost."""
    qemu = folder.qemu()
    assert qemu is not None
    begin = time.monotonic()
    Agent.connect(
        connected_socket(folder.agent),
        timeout=PATIENCE,
        orphan=HOUR,
        orderly=orderly,
        starved=lambda: processor_time(qemu.pid)[1],
    ).close()
    return time.monotonic() - begin


def attempts(count: int) -> list[float | None]:
    """As many sessions, each with its seconds, or None where there was no answer."""
    found: list[float | None] = []
    with Pool("armv5l", 1, cold=True) as pool:
        guest = pool.lease(timeout=120, orphan=HOUR)
        for _ in range(LOOPS):
            guest.start(["sh", "-c", "while :; do :; done"])
        guest.ping(120)
        guest.detach()
        (folder,) = pool._dir.guests()
        for number in range(count):
            try:
                # Each says one thing and waits for the answer: so they are orderly, all of them.
                found.append(session(folder, orderly=number % 2 == 1))
            except GuestLost:
                found.append(None)
    return found


def prove(proof: Proof) -> None:
    seconds: list[float | None] = []
    for number in range(1, ROUNDS + 1):
        kept = proof.folder / f"{number}.json"
        proof.step(
            f"{SESSIONS} sessions, for the {number}. time",
            lambda kept=kept: kept.write_text(json.dumps(attempts(SESSIONS))),  # type: ignore[misc]
        )
        seconds += json.loads(kept.read_text())
    answered = sorted(each for each in seconds if each is not None)
    proof.fact("busy loops in the guest", LOOPS)
    proof.fact("sessions, every second one without filler", len(seconds))
    proof.fact("not answered", len(seconds) - len(answered))
    proof.fact("half of them took less than", f"{answered[len(answered) // 2]:.3f} s")
    proof.fact("the longest took, on a machine with other work", f"{answered[-1]:.2f} s")
    assert len(answered) == len(seconds)
