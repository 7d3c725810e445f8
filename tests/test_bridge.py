"""The agent over a serial line: a pseudo terminal with noise on it; sessions come and go."""

from __future__ import annotations

import os
import pty
import random
import socket
import subprocess
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestctl import pipe
from guestctl.agent import Agent
from guestctl.bridge import Bridge
from guestctl.line import Line
from guestctl.pipe import Pipe
from guestctl.process import Host, Process
from guestctl.sockets import bound_socket, connected_socket
from guestctl.spec import Command
from guestctl.wire import Op
from tests.cable import Cable, Noise

ROOT = Path(__file__).parent.parent


class Serial:
    """A native agent at one end of a noisy line, a bridge at the other."""

    def __init__(self, program: Path, folder: Path, rate: int) -> None:
        master, slave = pty.openpty()
        tty.setraw(slave)
        ours, theirs = socket.socketpair()
        self.noise = Noise(1, rate)
        self.path = folder / "agent"
        self.bridge = Bridge(ours.detach(), bound_socket(self.path), Line.new())
        with theirs:
            self.cable = Cable(theirs.fileno(), master, self.noise)
        os.close(master)
        name = f"guestctl-line-test-{os.getpid()}-{id(self)}"
        self.process = subprocess.Popen(
            [program, "--line", os.ttyname(slave), "--plain", "--socket", name],
            env={"ASAN_OPTIONS": "detect_leaks=0"},
        )
        self.slave = slave

    def session(self, **options: float) -> Agent:
        return Agent.connect(connected_socket(self.path), timeout=60, hangs_up=False, **options)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.bridge.close()
        self.cable.pull()
        os.close(self.slave)


@pytest.fixture(params=[10**9, 3000], ids=["clean", "noisy"])
def serial(request: pytest.FixtureRequest, program: Path, tmp_path: Path) -> Iterator[Serial]:
    made = Serial(program, tmp_path, request.param)
    yield made
    made.stop()


def run(agent: Agent, *argv: bytes, stdin: bytes | None = None) -> tuple[int, bytes]:
    command = Command(argv=argv, env=(b"PATH=/usr/bin:/bin",))
    result = Process(
        agent, command, agent.start(command), host=Host("line"), stdin=stdin, stdout=None,
        stderr=None, timeout=120, idle_timeout=None,
    ).wait()  # fmt: skip
    return result.status, result.stdout


def test_commands_through_noise_and_a_second_session(serial: Serial) -> None:
    block = random.Random(2).randbytes(100_000) + bytes(100_000)
    agent = serial.session()
    agent.request(Op.PREPARE, timeout=60)
    assert run(agent, b"sh", b"-c", b"echo out; exit 3") == (3, b"out\n")
    assert run(agent, b"cat", stdin=block) == (0, block)
    # Cut off in the middle of output that nobody takes; the next one begins with a clean line.
    agent.start(Command(argv=(b"cat", b"/dev/zero"), env=(b"PATH=/usr/bin:/bin",)))
    agent.close()
    again = serial.session()
    assert again.welcome is not None and len(again.welcome.jobs) <= 1
    assert run(again, b"echo", b"again") == (0, b"again\n")
    again.close()
    assert serial.noise.rate > 10**6 or serial.noise.spoilt > 50


def test_a_new_bridge_goes_on_with_the_same_agent(serial: Serial, tmp_path: Path) -> None:
    """As after a crash of the host's end: the line's other end meets a new one."""
    agent = serial.session()
    agent.request(Op.PREPARE, timeout=60)
    device = os.dup(serial.bridge._device)
    agent.close()
    serial.bridge.close()
    serial.path = tmp_path / "again"
    serial.bridge = Bridge(device, bound_socket(serial.path), Line.new())
    again = serial.session()
    assert run(again, b"echo", b"again") == (0, b"again\n")
    again.close()


# --- a line that changes nothing, as QEMU's end of a network channel is one ----------------------


class Clear:
    """A bridge whose line is a socket; `qemu` is its far end."""

    def __init__(self, folder: Path) -> None:
        ours, self.qemu = socket.socketpair()
        self.qemu.settimeout(30)
        self.path = folder / "agent"
        self.why: list[str] = []
        self.bridge = Bridge(ours.detach(), bound_socket(self.path), Pipe(), ended=self.why.append)

    def met(self) -> socket.socket:
        """A client, of whom the bridge knows."""
        client = connected_socket(self.path)
        client.sendall(b"x")
        assert self.qemu.recv(1) == b"x"
        return client


@pytest.fixture
def clear(tmp_path: Path) -> Iterator[Clear]:
    made = Clear(tmp_path)
    yield made
    made.bridge.close()
    made.qemu.close()


def test_a_client_that_does_not_read_keeps_nobody_waiting(clear: Clear) -> None:
    """All that credit allows is taken from the line at once, and handed on later."""
    data = random.Random(3).randbytes(1 << 20)
    with clear.met() as client:
        for _ in range(24):
            clear.qemu.sendall(data)
        got = bytearray()
        while len(got) < 24 << 20:
            got += client.recv(1 << 20)
        assert got == 24 * data
    # What is said while nobody is there is dropped, and the next client begins with a clean line.
    clear.qemu.sendall(b"to nobody")
    with clear.met() as client:
        clear.qemu.sendall(b"to you")
        assert client.recv(100) == b"to you"


def test_what_nobody_can_be_owed_costs_the_client(
    clear: Clear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "LIMIT", 1 << 20)
    with clear.met() as client:
        clear.qemu.sendall(bytes(4 << 20))
        while client.recv(1 << 20):
            pass
    clear.met().close()


def test_a_line_that_does_not_take_holds_the_client_back(clear: Clear) -> None:
    with clear.met() as client:
        client.setblocking(False)
        sent = 0
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            try:
                sent += client.send(bytes(65536))
            except BlockingIOError:
                time.sleep(0.01)
        assert sent < 4 << 20
        # The other direction goes on meanwhile.
        clear.qemu.sendall(b"alive")
        client.setblocking(True)
        client.settimeout(30)
        assert client.recv(5) == b"alive"


def test_the_end_of_a_line_is_told(clear: Clear) -> None:
    with clear.met() as client:
        clear.qemu.close()
        assert client.recv(1) == b""
    deadline = time.monotonic() + 30
    while not clear.why:
        assert time.monotonic() < deadline
        time.sleep(0.01)
