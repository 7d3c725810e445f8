"""The caller's terminal: what is typed, and that it is given back on every way out."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest

from guestctl.cli.terminal import Keys


def test_every_byte_passes_but_the_escape() -> None:
    data = bytes(byte for byte in range(256) if byte != 0x1D)
    assert Keys().feed(data) == (data, False)


@pytest.mark.parametrize(
    ("pieces", "out", "detached"),
    [
        ([b"ab\x1ddc"], b"ab", True),
        ([b"ab\x1d", b"d"], b"ab", True),
        ([b"\x1d\x1d"], b"\x1d", False),
        ([b"\x1d\x1dd"], b"\x1dd", False),
        ([b"\x1d", b"x"], b"\x1dx", False),
        ([b"\x1d\x1d\x1dd"], b"\x1d", True),
    ],
)
def test_the_detach_key(pieces: list[bytes], out: bytes, detached: bool) -> None:
    keys = Keys()
    got = [keys.feed(piece) for piece in pieces]
    assert (b"".join(data for data, _ in got), got[-1][1]) == (out, detached)


HOLDER = """
import os, signal, sys, time
from guestctl.cli import main
from guestctl.cli.terminal import Terminal
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, main._end)
with Terminal():
    os.write(1, b"raw")
    {action}
"""


@pytest.mark.parametrize(
    ("action", "number", "status"),
    [
        ("pass", 0, 0),
        ("raise RuntimeError", 0, 1),
        ("sys.exit(9)", 0, 9),
        ("time.sleep(100)", signal.SIGTERM, 143),
        ("time.sleep(100)", signal.SIGHUP, 129),
        ("time.sleep(100)", signal.SIGQUIT, 131),
        ("time.sleep(100)", signal.SIGINT, -signal.SIGINT),
    ],
)
def test_the_terminal_is_given_back(action: str, number: int, status: int) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    argv = [sys.executable, "-c", HOLDER.format(action=action)]
    with subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        shown = b""
        while b"raw" not in shown:
            shown += os.read(ours, 100)
        if number:
            assert termios.tcgetattr(theirs) != before
            process.send_signal(number)
        assert process.wait(30) == status
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_what_is_stopped_and_goes_on_takes_the_terminal_again() -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    argv = [sys.executable, "-c", HOLDER.format(action="time.sleep(100)")]
    with subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        assert os.read(ours, 100) == b"raw"
        raw = termios.tcgetattr(theirs)
        process.send_signal(signal.SIGSTOP)
        termios.tcsetattr(theirs, termios.TCSANOW, before)
        process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + 30
        while termios.tcgetattr(theirs) != raw:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.terminate()
        process.wait(30)
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
