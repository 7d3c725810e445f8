"""Flow control of the agent: credit, floods, many commands at once."""

from __future__ import annotations

import struct

from tests.agent import client as wire
from tests.agent.client import Client, frame
from tests.native.agent import PATH, shell


def test_output_waits_for_credit(client: Client) -> None:
    client.credit = False
    flood = client.start([b"/usr/bin/yes"], PATH)
    client.until(lambda: len(client.jobs[flood].out[1]) == wire.WINDOW)
    client.settle(0.2)
    assert len(client.jobs[flood].out[1]) == wire.WINDOW
    # Somebody else is served all the same.
    job = client.jobs[client.start(shell("echo here"))]
    client.until(lambda: job.out[1] == b"here\n")
    client.send(frame(wire.CREDIT, flood, struct.pack("<I", 1000), channel=1))
    client.until(lambda: len(client.jobs[flood].out[1]) == wire.WINDOW + 1000)
    client.settle(0.2)
    assert len(client.jobs[flood].out[1]) == wire.WINDOW + 1000
    client.send(frame(wire.KILL, flood))


def test_exit_waits_until_all_is_credited(client: Client) -> None:
    client.credit = False
    ident = client.start(shell("echo hello"))
    job = client.jobs[ident]
    client.until(lambda: job.eof == {1, 2})
    client.settle(0.2)
    assert job.exit is None
    client.send(frame(wire.CREDIT, ident, struct.pack("<I", 6), channel=1))
    client.until(lambda: job.exit is not None)


def test_flood_does_not_starve_others(client: Client) -> None:
    floods = [client.start([b"/usr/bin/yes"], PATH) for _ in range(3)]
    client.until(lambda: all(len(client.jobs[i].out[1]) > wire.WINDOW for i in floods))
    for _ in range(5):
        assert client.run(shell("echo x")).out[1] == b"x\n"
    for ident in floods:
        client.send(frame(wire.KILL, ident))
    client.until(lambda: all(client.jobs[i].over for i in floods))


def test_data_beyond_the_credit_breaks_the_session(client: Client) -> None:
    ident = client.start([b"/bin/sleep", b"100"], eof=False)
    for _ in range(12):
        client.pending += frame(wire.DATA, ident, bytes(65536))
        client.jobs[ident].credit -= 65536
    client.until(lambda: bool(client.logs))
    assert "credit" in client.logs[0]


def test_credit_that_was_never_used_breaks_the_session(client: Client) -> None:
    ident = client.start([b"/bin/cat"], eof=False)
    client.send(frame(wire.CREDIT, ident, struct.pack("<I", 1), channel=1))
    client.until(lambda: bool(client.logs))


def test_several_at_once(client: Client) -> None:
    jobs = {
        client.start(shell(f"for i in 1 2 3; do echo {n} $i; sleep 0.05; done; exit {n}")): n
        for n in range(20)
    }
    client.until(lambda: all(client.jobs[i].over for i in jobs))
    for ident, n in jobs.items():
        job = client.jobs[ident]
        assert job.exit is not None and job.exit.value == n
        assert job.out[1].decode() == "".join(f"{n} {i}\n" for i in (1, 2, 3))
