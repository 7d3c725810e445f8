"""A host that stands still for longer than a heartbeat: caller, supervisor and QEMU are stopped,
and go on.

A suspended machine's monotonic clock stands still too; here it goes on, which is the harder case.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from guestctl import Pool
from guestctl.processes import ProcessId
from tests.proof import Proof

TITLE = "A guest and its caller survive a host that stands still for a minute"
SECONDS = 70.0
# The command says nothing for a moment when the host goes on, and may not for this long.
IDLE = 20.0
SCRIPT = "echo begun; sleep 10; echo ended"


def paused(pool: Pool) -> dict[str, object]:
    """A command is stopped in its middle, with all that it needs on the host."""
    argv = [sys.executable, "-m", "guestctl", "run", "--name", pool.name]
    argv += ["--idle-timeout", str(IDLE), "--", "sh", "-c", SCRIPT]
    (folder,) = pool._dir.guests()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"begun\n"
        known = [ProcessId.of(caller.pid), folder.supervisor(), folder.qemu()]
        all_of_it = [each for each in known if each is not None]
        assert len(all_of_it) == 3
        for each in all_of_it:
            each.send(signal.SIGSTOP)
        time.sleep(SECONDS)
        for each in reversed(all_of_it):
            each.send(signal.SIGCONT)
        rest = caller.communicate(timeout=120)[0]
    with pool.lease(60) as guest:
        guest.run(["true"]).check()
    return {
        "status": caller.returncode,
        "said": rest.decode(),
        "same": folder.qemu() == all_of_it[2],
    }


def prove(proof: Proof) -> None:
    kept = proof.folder / "pause.json"

    def once() -> None:
        with Pool("armv5l", 1, name=f"pause-{os.getpid()}") as pool:
            kept.write_text(json.dumps(paused(pool)))

    proof.step(f"stopped for {SECONDS:g} seconds", once)
    facts = json.loads(kept.read_text())
    proof.fact("stopped under a command", f"caller, supervisor and QEMU, for {SECONDS:g} s")
    proof.fact("the command's idle time-out", f"{IDLE:g} s")
    proof.fact("its status, and what it said then", f"{facts['status']}, `{facts['said'].strip()}`")
    proof.fact("the guest", "the same" if facts["same"] else "another")
    assert facts == {"status": 0, "said": "ended\n", "same": True}
