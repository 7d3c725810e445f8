"""Boards: mutual authentication, records that cannot be changed, and another machine's agent."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from guestctl.agent import Agent
from guestctl.board import Connection, Forwarder, make_key, read_key, split_address
from guestctl.errors import BoardError, GuestLost
from guestctl.process import Host, Process
from guestctl.sockets import bound_socket, connected_socket
from guestctl.spec import Command
from guestctl.wire import Op
from tests.fairness import FOREVER

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "board.key"
    make_key(path)
    return path


def listening(port: int) -> bool:
    """Whether a socket of this host listens there; without connecting to it."""
    with open("/proc/net/tcp", encoding="ascii") as file:
        return any(f":{port:04X} 00000000:0000 0A" in line for line in file)


class Board:
    """An agent behind a TCP port of the loopback."""

    def __init__(self, program: Path, key: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address: tuple[str, int] = probe.getsockname()
        where = f"127.0.0.1:{self.address[1]}"
        name = f"guestctl-board-test-{os.getpid()}-{time.monotonic_ns()}"
        self.process = subprocess.Popen(
            [program, "--plain", "--socket", name, "--listen", where, key],
            env={"ASAN_OPTIONS": "detect_leaks=0"},
        )
        deadline = time.monotonic() + 20
        while not listening(self.address[1]):
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.01)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def board(program: Path, key: Path) -> Iterator[Board]:
    made = Board(program, key)
    yield made
    made.stop()


@pytest.fixture
def path(board: Board, key: Path, tmp_path: Path) -> Iterator[Path]:
    """A unix socket behind which the board is."""
    forwarder = Forwarder(board.address, read_key(key), bound_socket(tmp_path / "agent"))
    yield tmp_path / "agent"
    forwarder.close()


def run(agent: Agent, *argv: bytes, stdin: bytes | None = None) -> tuple[int, bytes]:
    command = Command(argv=argv, env=(b"PATH=/usr/bin:/bin",))
    result = Process(
        agent, command, agent.start(command), host=Host("board"), stdin=stdin, stdout=None,
        stderr=None, timeout=FOREVER, idle_timeout=None,
    ).wait()  # fmt: skip
    return result.status, result.stdout


def test_commands_and_a_second_session(path: Path) -> None:
    data = random.Random(1).randbytes(3_000_000)
    agent = Agent.connect(connected_socket(path), timeout=20, hangs_up=False)
    agent.request(Op.PREPARE, timeout=20)
    assert run(agent, b"sh", b"-c", b"echo out; exit 3") == (3, b"out\n")
    assert run(agent, b"cat", stdin=data) == (0, data)
    agent.close()
    again = Agent.connect(connected_socket(path), timeout=20, hangs_up=False)
    assert run(again, b"echo", b"again") == (0, b"again\n")
    again.close()


def test_a_flood_in_both_directions_does_not_lock_up(path: Path) -> None:
    """More stdin than the agent takes, while it has more to say than the host has taken."""
    agent = Agent.connect(connected_socket(path), timeout=20, hangs_up=False)
    agent.request(Op.PREPARE, timeout=20)
    data = bytes(8_000_000)
    jobs = [threading.Thread(target=run, args=(agent, b"cat"), kwargs={"stdin": data})
            for _ in range(3)]  # fmt: skip
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(FOREVER)
        assert not job.is_alive()
    agent.close()


def test_another_key_opens_nothing(board: Board, tmp_path: Path) -> None:
    make_key(tmp_path / "other.key")
    with pytest.raises(BoardError, match="does not have our key"):
        Connection(board.address, read_key(tmp_path / "other.key"))


def test_a_host_without_the_key_gets_no_further_than_its_greeting(board: Board) -> None:
    """It is given the agent's proof, and has none of its own."""
    with socket.create_connection(board.address, timeout=20) as host:
        host.sendall(b"gctl-b1\n" + bytes(32))
        answer = b""
        while len(answer) < 64:
            answer += host.recv(64)
        host.sendall(bytes(32))
        assert host.recv(1) == b""


class Middle:
    """Sits between the host and the board, and changes one byte of what the board says."""

    def __init__(self, board: tuple[str, int], at: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._server.getsockname()
        self._board = board
        self._at = at
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        client, _ = self._server.accept()
        board = socket.create_connection(self._board)
        threading.Thread(target=self._pass, args=(client, board, -1), daemon=True).start()
        self._pass(board, client, self._at)

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, at: int) -> None:
        passed = 0
        while data := bytearray(source.recv(4096)):
            if 0 <= at - passed < len(data):
                data[at - passed] ^= 1
            passed += len(data)
            target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("at", [64, 66, 90, 2000])
def test_a_changed_byte_ends_the_session(board: Board, key: Path, tmp_path: Path, at: int) -> None:
    middle = Middle(board.address, at)
    forwarder = Forwarder(middle.address, read_key(key), bound_socket(tmp_path / "agent"))
    with pytest.raises(GuestLost):
        agent = Agent.connect(
            connected_socket(tmp_path / "agent"), timeout=5, heartbeat=5, hangs_up=False
        )
        while True:
            agent.ping(5)
    forwarder.close()


def test_keys_and_addresses(tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    assert len(read_key(tmp_path / "key")) == 32
    with pytest.raises(FileExistsError):
        make_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(BoardError, match="open to others"):
        read_key(tmp_path / "key")
    (tmp_path / "short").write_text("abcd")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(BoardError, match="hexadecimal"):
        read_key(tmp_path / "short")
    assert split_address("board") == ("board", 7743)
    assert split_address("10.0.0.2:99") == ("10.0.0.2", 99)
    for wrong in ("", ":1", "a:", "a:0", "a:70000", "a:b"):
        with pytest.raises(BoardError):
            split_address(wrong)


def test_a_key_that_others_may_read_is_refused_by_the_agent(program: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    done = subprocess.run(
        [program, "--plain", "--listen", "127.0.0.1:0", tmp_path / "key"],
        capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode and b"open to others" in done.stderr


def test_a_second_machine_in_a_network_of_its_own(program: Path, key: Path) -> None:
    argv = ["unshare", "--user", "--map-root-user", "--net", "--kill-child", "--fork"]
    argv += [sys.executable, "-m", "tests.agent.twonets", str(program), str(key)]
    done = subprocess.run(argv, capture_output=True, timeout=90, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode()
    # The command has seen the board's network, and not ours.
    assert b"board0:" in done.stdout and b"us0:" not in done.stdout
