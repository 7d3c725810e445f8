"""What a session leaves behind: orphans, and ends that nobody took."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.agent import client as wire
from tests.agent.client import Client, frame
from tests.fairness import gone, until
from tests.native.agent import PATH, Agent, python, shell, waits_for


def test_attach_loses_and_doubles_nothing(agent: Agent) -> None:
    """Sessions of any length; what was credited is never seen again, all else is."""
    client = agent.prepared()
    text = "import sys\nfor i in range(150000): sys.stdout.write('line %d\\n' % i)\nsys.exit(9)"
    ident = client.start(python(text))
    expected = b"".join(b"line %d\n" % i for i in range(150000))
    job, got, sessions = client.jobs[ident], b"", 1
    while not job.over:
        client.settle(0.001 * sessions)
        if job.over:
            break
        client.until(lambda c=client: not c.pending)  # type: ignore[misc]
        got += bytes(job.out[1])
        # What is on its way, in any state, is lost with the session.
        client = agent.session()
        assert client.welcomed(wire.JOB) == [struct.pack("<I", ident)]
        client.send(frame(wire.ATTACH, ident))
        job, sessions = client.jobs[ident], sessions + 1
        client.until(lambda j=job: j.started is not None)  # type: ignore[misc]
    got += bytes(job.out[1])
    assert sessions > 3 and job.exit is not None and job.exit.value == 9
    assert got == expected


def test_outcome_of_an_orphan_waits(agent: Agent) -> None:
    client = agent.prepared()
    ident = client.start(shell("sleep 0.1; echo done; exit 4"))
    client = agent.session()
    client.settle(0.5)
    client.send(frame(wire.ATTACH, ident))
    client.until(lambda: client.jobs[ident].over)
    job = client.jobs[ident]
    assert job.out[1] == b"done\n" and job.exit is not None and job.exit.value == 4
    assert agent.session().welcomed(wire.JOB) == []


def test_stdin_has_its_full_credit_after_attach(agent: Agent, tmp_path: Path) -> None:
    client = agent.prepared()
    script = f"read go; {waits_for(tmp_path / 'go')}; exec cat"
    ident = client.start(shell(script), PATH, eof=False)
    first = b"go\n" + b"a" * (wire.WINDOW - 3)
    client.feed(ident, first, eof=False)
    client.until(lambda: not client.pending)
    client = agent.session()
    client.send(frame(wire.ATTACH, ident))
    (tmp_path / "go").touch()
    client.feed(ident, b"b" * (2 * wire.WINDOW))
    client.until(lambda: client.jobs[ident].over)
    assert bytes(client.jobs[ident].out[1]) == first[3:] + b"b" * (2 * wire.WINDOW)


def test_orphan_is_killed_when_its_time_has_passed(agent: Agent, tmp_path: Path) -> None:
    client = agent.session(orphan=300)
    assert client.request(wire.PREPARE) == 0
    script = f"echo $$; {waits_for(tmp_path / 'go')}; touch {tmp_path}/survived"
    job = client.jobs[client.start(shell(script), PATH)]
    client.until(lambda: job.out[1].endswith(b"\n"))
    client = agent.session()
    assert client.welcomed(wire.JOB)
    assert gone(int(job.out[1]))
    (tmp_path / "go").touch()
    # The agent hears of it a moment after its processes are gone.
    until(lambda: agent.session().welcomed(wire.JOB) == [])
    assert not (tmp_path / "survived").exists()


def test_attach_of_nobody(client: Client) -> None:
    client.send(frame(wire.ATTACH, 77))
    client.until(lambda: client.jobs[77].failed is not None)
    assert client.jobs[77].failed == (3, 1, "no such job")


def test_description_does_not_outlive_its_session(agent: Agent) -> None:
    client = agent.prepared()
    client.send(frame(wire.SPEC, 5, wire.record(wire.ARG, b"/bin/true")))
    client = agent.session()
    client.send(frame(wire.EXEC, 5))
    client.until(lambda: client.jobs[5].failed is not None)


@pytest.mark.parametrize("argv", [[b"/bin/sh", b"-c", b"echo out; exit 5"], [b"/no/such"]])
def test_an_end_that_nobody_took_is_told_again(agent: Agent, argv: list[bytes]) -> None:
    client = agent.prepared()
    client.forget = False
    first = client.run(argv)
    for _ in range(3):
        client = agent.session()
        client.forget = False
        (number,) = struct.unpack("<I", client.welcomed(wire.JOB)[0])
        client.send(frame(wire.ATTACH, number))
        again = client.jobs[number]
        client.until(lambda job=again: job.over)  # type: ignore[misc]
        assert (again.exit, again.failed) == (first.exit, first.failed)
        assert not again.out[1]  # it was credited
    client.send(frame(wire.FORGET, number))
    assert agent.session().welcomed(wire.JOB) == []


def test_forget_kills_what_runs_and_says_nothing(agent: Agent) -> None:
    client = agent.prepared()
    job = client.jobs[ident := client.start(shell("echo $$; exec sleep 100"))]
    client.until(lambda: bool(job.out[1]))
    client.send(frame(wire.FORGET, ident))
    assert gone(int(job.out[1]))
    client.settle(0.2)
    assert not job.over
    assert agent.session().welcomed(wire.JOB) == []


def test_stdin_that_an_earlier_session_has_ended_is_swallowed(agent: Agent, tmp_path: Path) -> None:
    client = agent.prepared()
    ident = client.start(shell(f"cat; {waits_for(tmp_path / 'go')}; echo end"), PATH, eof=True)
    client.until(lambda: client.jobs[ident].started is not None)
    client = agent.session()
    client.send(frame(wire.ATTACH, ident))
    client.feed(ident, bytes(3 * wire.WINDOW))
    (tmp_path / "go").touch()
    client.until(lambda: client.jobs[ident].over)
    assert client.jobs[ident].out[1] == b"end\n"
    assert client.jobs[ident].credit == wire.WINDOW


def test_memory_is_told(client: Client) -> None:
    assert client.request(wire.STATUS) == 0
    ((tag, value),) = client.replies[client.next_id - 1][1]
    total, available, swap, free = struct.unpack("<4Q", value)
    assert tag == wire.MEMORY and 0 < available <= total and free <= swap
