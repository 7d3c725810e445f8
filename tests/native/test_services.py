"""Service streams: what programs of the guest ask of the host."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

import pytest

from tests.agent import client as wire
from tests.agent.client import Client, frame
from tests.native.agent import BLOB, Agent, python


def opened(client: Client, name: bytes) -> int:
    found: list[int] = []

    def seek() -> bool:
        found[:] = [i for i, job in client.jobs.items() if job.name == name]
        return bool(found)

    client.until(seek)
    return found[0]


def accept(client: Client, ident: int) -> None:
    client.send(frame(wire.CREDIT, ident, bytes(4)))


def test_service_stream_both_ways(agent: Agent, client: Client) -> None:
    sock = agent.connect(b"echo\nfirst")
    ident = opened(client, b"echo")
    assert ident >= 0x80000000
    client.settle(0.1)
    assert not client.jobs[ident].out[0]
    accept(client, ident)
    client.until(lambda: client.jobs[ident].out[0] == b"first")
    client.feed(ident, b"answer", eof=False)
    assert sock.recv(100) == b"answer"
    sock.shutdown(socket.SHUT_WR)
    client.until(lambda: client.jobs[ident].eof == {0})
    client.feed(ident, b"last words")
    assert sock.recv(100) == b"last words"
    assert sock.recv(100) == b""


def test_service_stream_carries_much(agent: Agent, client: Client) -> None:
    text = (
        "import socket,sys\n"
        f"s = socket.socket(socket.AF_UNIX); s.connect(b'\\0{agent.name}'); s.sendall(b'copy\\n')\n"
        "import threading\n"
        "def pump():\n"
        "    while data := sys.stdin.buffer.read(65536): s.sendall(data)\n"
        "    s.shutdown(socket.SHUT_WR)\n"
        "threading.Thread(target=pump).start()\n"
        "while data := s.recv(65536): sys.stdout.buffer.write(data)\n"
    )
    ident = client.start(python(text), eof=False)
    stream = opened(client, b"copy")
    accept(client, stream)
    blob = BLOB[: 5 << 20]
    client.feed(ident, blob)
    client.until(lambda: client.jobs[stream].eof == {0})
    assert client.jobs[stream].out[0] == blob
    client.feed(stream, blob)
    client.until(lambda: client.jobs[ident].over)
    assert client.jobs[ident].out[1] == blob


def test_refused_service_is_closed(agent: Agent, client: Client) -> None:
    sock = agent.connect(b"unknown\n")
    ident = opened(client, b"unknown")
    client.send(frame(wire.RESET, ident, struct.pack("<I", 111) + b"no"))
    assert sock.recv(100) == b""


@pytest.mark.parametrize("line", [b"x" * 65, b"\n", b"x" * 64 + b"y\n"])
def test_bad_name_is_closed(agent: Agent, client: Client, line: bytes) -> None:
    sock = agent.connect(line)
    # Reset and not just closed, if something was left unread.
    with suppress(ConnectionResetError):
        assert sock.recv(100) == b""


def test_longest_name(agent: Agent, client: Client) -> None:
    sock = agent.connect(b"n" * 64 + b"\n")
    opened(client, b"n" * 64)
    sock.close()


def test_services_end_with_the_session(agent: Agent, client: Client) -> None:
    sock = agent.connect(b"echo\n")
    accept(client, opened(client, b"echo"))
    agent.session()
    assert sock.recv(100) == b""


def test_no_more_than_the_limit_of_services(agent: Agent, client: Client) -> None:
    socks = [agent.connect(b"many\n") for _ in range(256)]
    client.until(lambda: sum(job.name == b"many" for job in client.jobs.values()) == 256)
    late = agent.connect(b"")
    assert late.recv(100) == b""
    assert client.run([b"/bin/true"]).exit is not None
    for sock in socks:
        sock.close()


def test_closed_in_the_guest(agent: Agent, client: Client) -> None:
    sock = agent.connect(b"echo\n")
    ident = opened(client, b"echo")
    accept(client, ident)
    sock.close()
    client.until(lambda: client.jobs[ident].eof == {0})
    client.feed(ident, b"too late", eof=False)
    client.until(lambda: client.jobs[ident].reset is not None)
    assert client.jobs[ident].reset is not None and client.jobs[ident].reset[0] == 32
