"""Why a guest was lost: from its run directory alone."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from guestctl.errors import AgentBroke, GuestHung, GuestLost
from guestctl.loss import explained
from guestctl.processes import ProcessId
from guestctl.rundir import GuestDir


@pytest.fixture
def folder(tmp_path: Path) -> GuestDir:
    made = GuestDir(tmp_path / "g0")
    made.path.mkdir()
    made.console.write_bytes(b"Kernel panic\r\n")
    return made


def test_the_supervisors_word_counts(folder: GuestDir) -> None:
    folder.write_state({"state": "lost", "cause": "its kernel panicked"})
    error = explained(folder, GuestLost("end of file"))
    assert str(error) == "guest g0 was lost: its kernel panicked"
    assert error.console == "Kernel panic\n"


def test_it_is_waited_for_as_long_as_the_supervisor_lives(folder: GuestDir) -> None:
    me = ProcessId.of(os.getpid())
    dead = subprocess.Popen(["true"])
    qemu = ProcessId.of(dead.pid)
    dead.wait()
    facts = {"supervisor_pid": me.pid, "supervisor_start": me.start}
    facts |= {"qemu_pid": qemu.pid, "qemu_start": qemu.start}
    folder.write_state({"state": "ready", **facts})
    late = {"state": "lost", "cause": "QEMU was ended by signal 9", **facts}
    threading.Timer(0.3, folder.write_state, [late]).start()
    assert "signal 9" in str(explained(folder, GuestLost("end of file")))


def test_a_supervisor_that_is_gone_has_nothing_to_say(folder: GuestDir) -> None:
    folder.write_state({"state": "ready"})
    assert "end of file" in str(explained(folder, GuestLost("end of file")))


@pytest.mark.parametrize("kind", [AgentBroke, GuestHung])
def test_a_guest_that_lives_and_is_of_no_use_is_condemned(
    folder: GuestDir, kind: type[GuestLost]
) -> None:
    folder.write_state({"state": "ready"})
    error = explained(folder, kind("it lies"))
    assert isinstance(error, kind)
    assert folder.condemnation() == "it lies"
