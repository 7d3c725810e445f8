"""Sessions of the agent, and requests."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from tests.agent import client as wire
from tests.agent.client import Client, frame
from tests.fairness import gone
from tests.native.agent import Agent, shell


def test_welcome_names_the_agent(agent: Agent) -> None:
    client = agent.session()
    assert client.welcomed(wire.AGENT) == [b"guest-init 1"]
    assert client.welcomed(wire.MACHINE) == [os.uname().machine.encode()]
    assert len(client.welcomed(wire.BOOT_ID)[0]) == 36
    assert client.welcomed(wire.JOB) == []


def test_ping(client: Client) -> None:
    client.send(frame(wire.PING, 0, struct.pack("<Q", 77)))
    client.until(lambda: client.pongs == [77])


def test_many_pings_without_reading(agent: Agent, client: Client) -> None:
    """More answers than the agent keeps: it stops reading, and goes on when they are taken."""
    count = 60000
    pings = b"".join(frame(wire.PING, 0, struct.pack("<Q", n)) for n in range(count))
    sent = 0
    while sent < len(pings):
        try:
            sent += agent.sock.send(pings[sent : sent + 100_000])
        except BlockingIOError:
            time.sleep(0.3)
            taken = sent // 21 - 20000
            client.until(lambda taken=taken: len(client.pongs) > taken)  # type: ignore[misc]
    client.until(lambda: len(client.pongs) == count)
    assert client.pongs == list(range(count))


def test_nothing_but_hello_counts_before_a_session(agent: Agent) -> None:
    agent.sock.sendall(frame(wire.PING, 0, bytes(8)) + frame(wire.EXEC, 1))
    client = agent.session()
    client.settle(0.1)
    assert client.pongs == [] and not client.jobs


@pytest.mark.parametrize(
    "broken",
    [
        frame(wire.PING, 0, bytes(8))[:-1] + b"\0",
        b"\x7f",
        struct.pack("<BBHII", wire.DATA, 0, 0, 1, 65537),
        struct.pack("<BBHII", wire.DATA, 0, 0, 1, 0xFFFFFFFF),
        struct.pack("<BBHII", wire.PING, 0, 1, 0, 8) + bytes(8) + b"\x5a",
        frame(wire.PING, 0, bytes(7)),
        frame(wire.PING, 5, bytes(8)),
        frame(wire.SIGNAL, 5, bytes(3)),
        frame(wire.DATA, 5),
        frame(wire.DATA, 5, b"x", channel=1),
        frame(wire.EXEC, 0),
        frame(wire.EXEC, 0x80000000),
        frame(wire.RESET, 5, bytes(4)),
        frame(wire.REQUEST, 5, bytes(3)),
        frame(wire.WELCOME, 0, bytes(20)),
    ],
)
def test_broken_frame_ends_the_session_until_hello(agent: Agent, broken: bytes) -> None:
    client = agent.prepared()
    client.send(broken + frame(wire.PING, 0, bytes(8)))
    client.settle(0.2)
    assert client.pongs == []
    again = agent.session()
    again.send(frame(wire.PING, 0, struct.pack("<Q", 1)))
    again.until(lambda: again.pongs == [1])


def test_stream_cut_at_every_position(agent: Agent) -> None:
    agent.prepared()
    spec = frame(wire.SPEC, 9, wire.record(wire.ARG, b"/bin/true")) + frame(wire.EXEC, 9)
    for at in range(1, len(spec)):
        agent.sock.setblocking(True)
        agent.sock.sendall(spec[:at])
        client = agent.session(orphan=0)
        assert client.welcomed(wire.JOB) == []


def test_cut_in_a_large_frame(agent: Agent) -> None:
    agent.prepared()
    data = frame(wire.DATA, 9, b"\x01" * 65536)
    for at in (1, 11, 12, 13, 40000, 65547, 65548):
        agent.sock.setblocking(True)
        agent.sock.sendall(data[:at])
        client = agent.session()
        assert client.run([b"/bin/true"]).exit is not None


def test_requests(agent: Agent) -> None:
    client = agent.session()
    job = client.run([b"/bin/true"])
    assert job.failed is not None and job.failed[0] == 11
    assert client.request(wire.MOUNT, (wire.TAG, b"t"), (wire.TARGET, b"/t")) == 11
    assert client.request(wire.RENEW, (wire.SEED, b"s")) == 11
    assert client.request(wire.PREPARE, (wire.TAG, b"t")) == 71
    assert client.request(wire.PREPARE) == 0
    assert client.request(wire.PREPARE) == 114
    assert client.request(wire.RENEW) == 71
    assert client.request(wire.RENEW, (wire.SEED, b"s"), (wire.SWAP, bytes(4))) == 71
    assert client.request(wire.RENEW, (wire.SEED, b"s")) == 0
    assert client.request(wire.MOUNT, (wire.TAG, b"t"), (wire.TARGET, b"/t")) == 95
    assert client.request(wire.MOUNT, (wire.TAG, b"t")) == 71
    assert client.request(wire.SYNC) == 0
    assert client.request(99) == 95


def test_requests_are_answered_in_order(client: Client) -> None:
    idents = [client.ids() for _ in range(10)]
    client.send(b"".join(frame(wire.REQUEST, i, struct.pack("<HH", wire.SYNC, 0)) for i in idents))
    client.until(lambda: len(client.replies) > 10)
    answered = [ident for kind, _, ident, _ in client.frames if kind == wire.REPLY]
    assert answered[1:] == idents


def test_poweroff_kills_and_says_that_it_was_orderly(agent: Agent) -> None:
    client = agent.prepared()
    client.start([b"/bin/sleep", b"100"])
    assert client.request(wire.POWEROFF) == 0
    assert agent.process.wait(60) == 66


def test_agent_ends_with_its_socket(agent: Agent, tmp_path: Path) -> None:
    client = agent.prepared()
    job = client.jobs[client.start(shell("echo $$; exec sleep 100"))]
    client.until(lambda: bool(job.out[1]))
    agent.sock.close()
    assert agent.process.wait(60) == 0
    assert gone(int(job.out[1]))
