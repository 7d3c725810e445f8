"""Rounds of changing, compiling and running in a guest, by a quick program (coherence.c)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from guestctl import Guest
from guestctl.offload import Summary, read_ledger, summarize

from .shells import settle

__all__ = ["compiled", "rounds"]

_SOURCE = Path(__file__).with_name("coherence.c")


def compiled(folder: Path) -> bytes:
    """The program, static, for the guest."""
    out = folder / "coherence"
    argv = ["arm-linux-gnueabi-gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]
    subprocess.run([*argv, "-o", out, _SOURCE], check=True, timeout=60)
    return out.read_bytes()


def rounds(guest: Guest, program: bytes, jobs: int, each: int) -> Summary:
    """`each` rounds in each of `jobs` jobs at once, in an empty share that is mounted. Fails where
    anything was stale, cut short or missing; returns what the ledger says of the calls, all of
    which are in it."""
    assert guest.offload is not None
    before = len(read_ledger(guest.offload.ledger.path))
    script = 'cat >/tmp/coherence; chmod 755 /tmp/coherence; exec /tmp/coherence "$0" "$1"'
    done = guest.run(
        ["sh", "-ec", script, str(jobs), str(each)], cwd="/work", stdin=program, timeout=1200
    )
    assert done.status == 0, done.stderr.decode(errors="replace")
    settle(guest)
    made = read_ledger(guest.offload.ledger.path)[before:]
    assert len(made) == int(done.stdout) >= jobs * each
    return summarize(made)
