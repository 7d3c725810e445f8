"""A running agent of this machine, on a socketpair, and commands for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.agent import client as wire
from tests.agent.client import Client

PATH = (wire.ENV, b"PATH=/usr/local/bin:/usr/bin:/bin")
PYTHON = os.fsencode(sys.executable)
BLOB = bytes(range(256)) * 4096 * 20  # 20 MiB


class Agent:
    """A running agent and the socket to it."""

    def __init__(self, program: Path, log: Path) -> None:
        self.name = f"guestctl-test-{os.getpid()}-{time.monotonic_ns()}"
        self.sock, theirs = socket.socketpair()
        self.log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [program, "--fd", str(theirs.fileno()), "--plain", "--socket", self.name],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                # Supervisors share its memory and never free it.
                env={"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1"},
            )
        theirs.close()

    def session(self, orphan: int = 60000) -> Client:
        client = Client(self.sock)
        client.hello(orphan)
        client.next_id = 1 + time.monotonic_ns() % 0x7FFF0000
        return client

    def prepared(self) -> Client:
        client = self.session()
        assert client.request(wire.PREPARE) == 0
        return client

    def connect(self, line: bytes) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        deadline = time.monotonic() + 60
        while True:
            # The queue of a socket is short, and the agent may be busy.
            try:
                sock.connect(b"\0" + self.name.encode())
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        with suppress(BrokenPipeError):
            sock.sendall(line)
        return sock

    def stop(self) -> None:
        self.sock.close()
        try:
            status = self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
        assert status in {0, 66}, self.log.read_text(errors="replace")


def shell(text: str) -> list[bytes]:
    return [b"/bin/sh", b"-c", text.encode()]


def python(text: str) -> list[bytes]:
    return [PYTHON, b"-c", text.encode()]


def waits_for(path: Path) -> str:
    """A line of shell that waits until a file is there."""
    return f"until test -e {path}; do sleep 0.02; done"
