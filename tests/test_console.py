"""The keeper of a console, with a socket pair in the place of QEMU's serial line."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestctl import console
from guestctl.console import ConsoleKeeper
from guestctl.sockets import bound_socket, connected_socket
from guestctl.tail import Tail
from tests.fairness import FOREVER, until


class Line:
    """A keeper, and the end of its line that is QEMU's."""

    def __init__(self, folder: Path) -> None:
        ours, self.qemu = socket.socketpair()
        self.qemu.settimeout(FOREVER)
        self.log = folder / "console.log"
        self.keyboard = folder / "console"
        self.keeper = ConsoleKeeper(ours, self.log, bound_socket(self.keyboard))
        self.keeper.start()

    def until(self, done: Callable[[], object]) -> None:
        until(done)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    made.keeper.close(5)
    made.qemu.close()


def test_what_the_kernel_says_is_kept_until_the_end(line: Line) -> None:
    line.qemu.sendall(b"one\n")
    line.until(lambda: line.log.exists() and line.log.read_bytes() == b"one\n")
    line.qemu.sendall(b"two\n")
    line.qemu.close()
    line.keeper.close(5)
    assert line.log.read_bytes() == b"one\ntwo\n"


def test_the_log_is_bounded_and_a_reader_misses_nothing(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LIMIT", 5000)
    seen = b""
    with Tail(line.log) as tail:
        expected = b""
        for n in range(3000):
            said = b"line %d\n" % n
            line.qemu.sendall(said)
            expected += said
            # A reader that sleeps while the log goes by twice does miss something.
            while n % 100 == 99 and len(seen) < len(expected):
                seen += tail.read()
                assert expected.startswith(seen)
    assert seen == expected
    assert line.log.stat().st_size < 5000 + 65536


def test_another_guest_of_the_name_has_a_log_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_bytes(b"Kernel panic\n")
    line = Line(tmp_path)
    line.qemu.sendall(b"fine\n")
    line.until(lambda: line.log.exists() and line.log.read_bytes() == b"fine\n")
    assert (tmp_path / "console.log.1").read_bytes() == b"Kernel panic\n"
    line.keeper.close(5)
    line.qemu.close()


def test_two_may_type(line: Line) -> None:
    with connected_socket(line.keyboard) as one, connected_socket(line.keyboard) as two:
        one.sendall(b"from one\n")
        assert line.qemu.recv(100) == b"from one\n"
        two.sendall(b"from two\n")
        assert line.qemu.recv(100) == b"from two\n"
    line.qemu.sendall(b"still kept\n")
    line.until(lambda: line.log.exists() and b"still kept" in line.log.read_bytes())


def test_a_guest_that_takes_nothing_holds_the_writer_back_and_nothing_else(line: Line) -> None:
    with connected_socket(line.keyboard) as writer:
        writer.setblocking(False)
        sent = 0
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            try:
                sent += writer.send(bytes(65536))
            except BlockingIOError:
                time.sleep(0.01)
        assert sent < 4 << 20
        line.qemu.sendall(b"alive\n")
        line.until(lambda: line.log.exists() and b"alive" in line.log.read_bytes())
        taken = 0
        while taken < sent:
            taken += len(line.qemu.recv(1 << 20))
    assert taken == sent


def test_a_writer_learns_of_the_end(line: Line) -> None:
    with connected_socket(line.keyboard) as writer:
        writer.sendall(b"x")
        assert line.qemu.recv(1) == b"x"
        line.qemu.close()
        assert writer.recv(1) == b""
