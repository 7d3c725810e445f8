"""A machine behind a serial device of this host: a pool of it, through noise, and without it."""

from __future__ import annotations

import os
import pty
import random
import subprocess
import sys
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestctl import GuestLost, Pool, journal
from guestctl.device import DeviceAddress
from guestctl.errors import UsageError
from guestctl.places import Places
from tests.cable import Cable, Noise


class Machine:
    """A native agent at a serial line of its own; `device` is this host's end of the cable."""

    def __init__(self, program: Path, rate: int) -> None:
        (ours, device), (theirs, line) = pty.openpty(), pty.openpty()
        for end in (device, line):
            tty.setraw(end)
        self.handles = [device, line]
        self.device = os.ttyname(device)
        self.noise = Noise(4, rate)
        self.cable = Cable(ours, theirs, self.noise)
        os.close(ours)
        os.close(theirs)
        name = f"guestctl-device-test-{os.getpid()}-{id(self)}"
        self.agent = subprocess.Popen(
            [program, "--plain", "--socket", name, "--line", f"{os.ttyname(line)}@115200"],
            env={"ASAN_OPTIONS": "detect_leaks=0"},
        )

    def stop(self) -> None:
        self.agent.kill()
        self.agent.wait()
        self.cable.pull()
        for handle in self.handles:
            os.close(handle)


@pytest.fixture(params=[10**9, 3000], ids=["clean", "noisy"])
def machine(
    request: pytest.FixtureRequest,
    program: Path,
) -> Iterator[Machine]:
    made = Machine(program, request.param)
    yield made
    made.stop()


def test_a_pool_of_it(machine: Machine, places: Places) -> None:
    block = random.Random(2).randbytes(60_000) + bytes(40_000)
    channel = f"serial:{machine.device}@115200"
    with Pool("armv5l", 1, places=places, channel=channel) as pool:
        for _ in range(2):
            with pool.lease(timeout=60) as guest:
                assert guest.run(["cat"], stdin=block, timeout=120).check().stdout == block
                assert guest.run(["sh", "-c", "exit 5"], timeout=60).status == 5
        # It has no share, and takes commands from the command line as a guest does.
        argv = [sys.executable, "-m", "guestctl", "run", "--name", pool.name, "--timeout", "60"]
        done = subprocess.run(
            [*argv, "--", "sh", "-c", "pwd; cat; exit 4"], input=b"typed", capture_output=True,
            check=False, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (4, b"/\ntyped"), done.stderr
        (facts,) = pool.status()
        assert (facts["name"], facts["state"], facts["confinement"]) == ("g0", "ready", None)
        # The device is one pool's at a time.
        with pytest.raises(GuestLost, match="another process has it"):
            Pool("armv5l", 1, places=places, channel=channel)
    assert machine.noise.rate > 10**6 or machine.noise.spoilt > 50


def test_a_machine_that_is_unplugged_is_lost(
    program: Path,
    own_places: Places,
) -> None:
    machine = Machine(program, 10**9)
    pool = Pool("armv5l", 1, places=own_places, channel=f"serial:{machine.device}")
    try:
        with pool.lease(timeout=60) as guest:
            process = guest.start(["sleep", "1000"])
            machine.stop()
            with pytest.raises(GuestLost, match=machine.device):
                process.wait()
        (facts,) = pool.status()
        assert facts["state"] == "lost" and machine.device in facts["cause"]
        told = [event["event"] for event in journal.read(pool.journal)]
        assert [event for event in told if event in ("boot", "ready", "lost")] == [
            *("boot", "ready", "lost"),
        ]
    finally:
        pool.down()


def test_a_device_where_nobody_answers_is_named(own_places: Places, tmp_path: Path) -> None:
    with pytest.raises(GuestLost, match="no-such-tty: No such file"):
        Pool("armv5l", 1, places=own_places, channel=f"serial:{tmp_path}/no-such-tty")
    with pytest.raises(UsageError, match="one machine"):
        Pool("armv5l", 2, places=own_places, channel="serial:/dev/ttyS9")


def test_addresses() -> None:
    assert str(DeviceAddress.parse("serial:/dev/ttyS1")) == "serial:/dev/ttyS1@115200"
    assert DeviceAddress.parse("serial:/dev/ttyS1@9600") == DeviceAddress("/dev/ttyS1", 9600)
    for wrong in ("serial:", "serial:@9600", "serial:/dev/ttyS1@", "serial:/dev/x@fast", "/dev/x"):
        with pytest.raises(UsageError):
            DeviceAddress.parse(wrong)


def test_the_agent_names_a_line_that_is_none(program: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for line, what in (("none", "No such file"), ("file", "ioctl"), (f"{'x' * 300}", "too long")):
        argv = [program, "--plain", "--line", str(tmp_path / line)]
        done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
        assert done.returncode and what in done.stderr.decode(), done.stderr


def test_it_is_told_in_the_help() -> None:
    argv = [sys.executable, "-m", "guestctl", "pool", "up", "--help"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "serial:/dev/ttyUSB0" in shown
