"""An agent that means harm costs its own guest: its session ends soon, and memory is bounded."""

from __future__ import annotations

import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from guestctl.agent import Agent
from guestctl.errors import GuestLost
from guestctl.process import Host, Process
from guestctl.services import offer
from guestctl.spec import Command
from tests.agent import client as wire
from tests.agent.client import frame, record
from tests.agent.hostile import Hostile

JOB = 1  # the first id that a host gives
STREAM = 0x80000000
STARTED = frame(wire.STARTED, JOB, b"\7\0\0\0" + bytes(16))
EXIT = frame(wire.EXIT, JOB, bytes(72))
ENDS = frame(wire.EOF, JOB, channel=1) + frame(wire.EOF, JOB, channel=2)


def forever(data: bytes) -> Callable[[socket.socket], None]:
    """Says the same until nobody listens."""

    def script(connection: socket.socket) -> None:
        many = data * max(1, (1 << 18) // len(data))
        while True:
            connection.sendall(many)

    return script


def once(data: bytes) -> Callable[[socket.socket], None]:
    """Says it and then holds the line."""

    def script(connection: socket.socket) -> None:
        connection.sendall(data)
        threading.Event().wait(30)

    return script


def opens(connection: socket.socket) -> None:
    """Service streams without end, each with an id of its own."""
    number = STREAM
    while True:
        connection.sendall(b"".join(frame(wire.OPEN, number + n, b"echo") for n in range(1000)))
        number += 1000


def wait(agent: Agent) -> None:
    command = Command(argv=(b"true",))
    Process(
        agent, command, agent.start(command), host=Host("g"), stdin=None, stdout=None, stderr=None,
        timeout=None, idle_timeout=None,
    ).wait()  # fmt: skip


HOSTILE = {
    "oversize": once(STARTED + struct.pack("<BBHII", wire.DATA, 1, 0, JOB, 65537)),
    "enormous": once(STARTED + struct.pack("<BBHII", wire.DATA, 1, 0, JOB, 0xFFFFFFFF)),
    "unknown type": once(frame(0x7F)),
    "a host's type": once(frame(wire.HELLO, 0, bytes(24))),
    "garbage": once(os.urandom(4096).replace(b"\0", b"\xff")),
    "wrong end mark": once(STARTED[:-1] + b"\xa5"),
    "exit before start": once(EXIT),
    "exit before the output's end": once(STARTED + EXIT),
    "exit of another's job": once(STARTED + ENDS.replace(b"\1\0\0\0", b"\2\0\0\0")),
    "exit of a job twice": once(STARTED + ENDS + EXIT + EXIT),
    "started twice": once(STARTED + STARTED),
    "output of nobody": once(frame(wire.DATA, 99, b"x", channel=1)),
    "output without credit": forever(STARTED[:0] + frame(wire.DATA, JOB, bytes(65536), channel=1)),
    "empty output": once(STARTED + frame(wire.DATA, JOB, b"", channel=1)),
    "a reply to nothing": once(frame(wire.REPLY, 5, bytes(4))),
    "a second welcome": once(frame(wire.WELCOME, 0, bytes(20))),
    "credit from nowhere": once(STARTED + frame(wire.CREDIT, JOB, b"\xff\xff\xff\xff")),
    "services without end": opens,
    "a service with a long name": once(frame(wire.OPEN, STREAM, b"n" * 65)),
    "a cut record": once(frame(wire.OPEN, STREAM, b"echo\0\1\xff\0\0\0")),
    "hang-up": lambda connection: connection.shutdown(socket.SHUT_RDWR),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_the_session_ends_at_once_and_says_why(what: str) -> None:
    ours, theirs = socket.socketpair()
    Hostile(theirs, HOSTILE[what])
    begin = time.monotonic()
    agent = Agent.connect(ours, timeout=20)
    try:
        offer(agent, b"echo", lambda connection, *_: None)
        with pytest.raises(GuestLost) as caught:
            wait(agent)
            # After a job that went well, what came behind its end breaks the session.
            while True:
                agent.ping(20)
        assert "\n" not in str(caught.value) and str(caught.value)
        assert time.monotonic() - begin < 60
    finally:
        agent.close()


def test_an_agent_that_claims_impossible_jobs_is_refused() -> None:
    ours, theirs = socket.socketpair()
    Hostile(theirs, once(b""), at_once=True, jobs=record(wire.JOB, b"\xff\xff\xff\xff"))
    with pytest.raises(GuestLost, match="protocol"):
        Agent.connect(ours, timeout=20)


# What may go on for ever without being an error, in a process that may not grow.
FLOODS = {
    "log lines": forever(frame(wire.LOG, 0, bytes(range(256)) * 200)),
    "pongs": forever(frame(wire.PONG, 0, b"\1" * 8)),
    "filler": forever(bytes(65536)),
    "a welcome that never comes": forever(b"\x41" * 65536),
}
_BOUNDED = """
import resource, socket, sys, threading
sys.path.insert(0, sys.argv[2])
from tests.test_hostile import flooded
flooded(sys.argv[1])
"""


def flooded(what: str) -> None:
    """Listens to a flood for a while, and says by how many MiB that has made the process grow."""
    ours, theirs = socket.socketpair()
    if what == "a welcome that never comes":
        threading.Thread(target=lambda: _quietly(FLOODS[what], theirs), daemon=True).start()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(GuestLost):
            Agent.connect(ours, timeout=2)
    elif what == "words that nobody reads":
        Hostile(theirs, once(b""), at_once=True, deaf=True)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        agent = Agent.connect(ours, timeout=20)
        job = agent.start(Command(argv=(b"true",)))
        while not agent.lost:
            agent.signal(job, 1)
        assert "does not read" in agent.lost
    elif what == "output byte by byte":
        piece = frame(wire.DATA, JOB, b"x", channel=1) + frame(wire.DATA, JOB, b"y", channel=2)
        Hostile(theirs, once(STARTED + piece * (1 << 18)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        agent = Agent.connect(ours, timeout=20)
        job = agent.start(Command(argv=(b"true",)))
        agent.end_stdin(job)
        deadline = time.monotonic() + 60
        while sum(len(event.data) for event in list(job.queue)[1:]) < 2 << 18:  # type: ignore[attr-defined]
            assert time.monotonic() < deadline
            time.sleep(0.1)
    else:
        Hostile(theirs, FLOODS[what], at_once=True)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        agent = Agent.connect(ours, timeout=20)
        time.sleep(1)
        assert not agent.lost
        agent.close()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(f"{(after - before) >> 10}\n")
    sys.stdout.flush()
    os._exit(0)


def _quietly(script: Callable[[socket.socket], None], connection: socket.socket) -> None:
    try:
        script(connection)
    except OSError:
        return


@pytest.mark.parametrize("what", [*FLOODS, "words that nobody reads", "output byte by byte"])
def test_a_flood_is_taken_in_bounded_memory(what: str) -> None:
    root = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", _BOUNDED, what, root],
        capture_output=True, timeout=120, check=False, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) < 160, f"{what}: grew by {done.stdout.decode().strip()} MiB"
