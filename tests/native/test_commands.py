"""Commands of the agent: what they are given, and how they end."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path

import pytest

from tests.agent import client as wire
from tests.agent.client import Client, frame
from tests.fairness import gone
from tests.native.agent import BLOB, PATH, python, shell


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_exit_status(client: Client, status: int) -> None:
    job = client.run(shell(f"exit {status}"))
    assert job.exit is not None and (job.exit.kind, job.exit.value) == (0, status)
    assert job.started is not None and job.started > 1
    assert job.exit.wall > 0 and job.exit.resident > 0


def test_usage_is_of_the_whole_job(client: Client) -> None:
    job = client.run(
        python("import os\nif os.fork() == 0:\n for _ in range(10**7): pass\nelse: os.wait()")
    )
    assert job.exit is not None and job.exit.user + job.exit.system > 50_000


def test_killed_by_a_signal(client: Client) -> None:
    job = client.run(shell("kill -SEGV $$"))
    assert job.exit is not None and (job.exit.kind, job.exit.value) == (1, signal.SIGSEGV)


def test_signal_reaches_the_process_group(client: Client) -> None:
    """The shell waits for its child before it says that it heard it, too."""
    script = """
        trap 'wait; echo parent; exit 6' TERM
        (trap 'echo child; exit' TERM; echo up; while :; do sleep 0.05; done) &
        wait
    """
    ident = client.start(shell(script))
    job = client.jobs[ident]
    client.until(lambda: job.out[1] == b"up\n")
    client.send(frame(wire.SIGNAL, ident, struct.pack("<I", signal.SIGTERM)))
    client.until(lambda: job.over)
    assert job.out[1] == b"up\nchild\nparent\n"
    assert job.exit is not None and (job.exit.kind, job.exit.value) == (0, 6)


def test_killed_by_a_signal_that_was_sent(client: Client) -> None:
    job = client.jobs[ident := client.start(shell("echo up; exec sleep 100"))]
    client.until(lambda: job.out[1] == b"up\n")
    client.send(frame(wire.SIGNAL, ident, struct.pack("<I", signal.SIGTERM)))
    client.until(lambda: job.over)
    assert job.exit is not None and (job.exit.kind, job.exit.value) == (1, signal.SIGTERM)


def test_signal_that_is_caught(client: Client) -> None:
    ident = client.start(shell("trap 'exit 7' USR1; echo up; while :; do sleep 0.05; done"))
    job = client.jobs[ident]
    client.until(lambda: job.out[1] == b"up\n")
    client.send(frame(wire.SIGNAL, ident, struct.pack("<I", signal.SIGUSR1)))
    client.until(lambda: job.over)
    assert job.exit is not None and (job.exit.kind, job.exit.value) == (0, 7)


def test_kill(client: Client) -> None:
    ident = client.start(shell("trap '' TERM INT HUP; sleep 100 & sleep 100"))
    job = client.jobs[ident]
    client.until(lambda: job.started is not None)
    client.send(frame(wire.KILL, ident))
    client.until(lambda: job.over)
    assert job.exit is not None and (job.exit.kind, job.exit.value) == (1, signal.SIGKILL)


def test_kill_right_after_exec(client: Client) -> None:
    for _ in range(20):
        ident = client.start([b"/bin/sleep", b"100"])
        client.send(frame(wire.KILL, ident))
        job = client.jobs[ident]
        client.until(lambda job=job: job.over)  # type: ignore[misc]
        assert job.failed or (job.exit and job.exit.value == signal.SIGKILL)


def test_what_is_left_in_the_background_is_killed(client: Client) -> None:
    job = client.run(shell("sleep 100 & echo $!; exit 3"))
    assert job.exit is not None and job.exit.value == 3
    pid = int(job.out[1])
    assert gone(pid)


def test_signals_to_nobody_are_ignored(client: Client) -> None:
    for kind, payload in (
        (wire.SIGNAL, bytes(4)),
        (wire.KILL, b""),
        (wire.EOF, b""),
        (wire.DATA, b"x"),
    ):
        client.send(frame(kind, 12345, payload))
    client.send(frame(wire.CREDIT, 12345, bytes(4), channel=1))
    assert client.run([b"/bin/true"]).exit is not None


def test_streams_are_apart(client: Client) -> None:
    job = client.run(shell("echo out; echo err >&2"))
    assert (job.out[1], job.out[2]) == (b"out\n", b"err\n")


def test_only_standard_files_are_open(client: Client) -> None:
    others = [client.start([b"/bin/cat"], eof=False) for _ in range(3)]
    job = client.run(python("import os; print(sorted(os.listdir('/proc/self/fd')))"))
    # 3 is the listing's own.
    assert job.out[1] == b"['0', '1', '2', '3']\n"
    for ident in others:
        client.send(frame(wire.EOF, ident))
        client.until(lambda ident=ident: client.jobs[ident].over)  # type: ignore[misc]


def test_stdin_reaches_the_command_and_ends(client: Client) -> None:
    ident = client.start([b"/bin/cat"], PATH, eof=False)
    client.feed(ident, b"one\n", eof=False)
    client.until(lambda: client.jobs[ident].out[1] == b"one\n")
    client.feed(ident, b"two\n")
    client.until(lambda: client.jobs[ident].over)
    assert client.jobs[ident].out[1] == b"one\ntwo\n"


def test_end_of_stdin_does_not_wait_for_other_commands(client: Client) -> None:
    first = client.start([b"/bin/cat"], eof=False)
    second = client.start([b"/bin/cat"], eof=False)
    client.send(frame(wire.EOF, first))
    client.until(lambda: client.jobs[first].over)
    client.send(frame(wire.EOF, second))
    client.until(lambda: client.jobs[second].over)


def test_stdin_that_nobody_reads_is_swallowed(client: Client) -> None:
    ident = client.start(shell("exec <&-; echo closed; sleep 0.3"), eof=False)
    client.until(lambda: bool(client.jobs[ident].out[1]))
    client.feed(ident, bytes(2_000_000))
    client.until(lambda: client.jobs[ident].over)


def test_twenty_megabytes_both_ways(client: Client) -> None:
    ident = client.start([b"/bin/cat"], eof=False)
    client.feed(ident, BLOB)
    client.until(lambda: client.jobs[ident].over)
    assert client.jobs[ident].out[1] == BLOB
    assert client.jobs[ident].credit == wire.WINDOW


def test_arguments_and_environment_are_bytes(client: Client) -> None:
    words = [b"", b"a b", b"new\nline", b"\xff\xfe", b"'\"$`\\"]
    text = "import os,sys; print([os.fsencode(a) for a in sys.argv[1:]], dict(os.environb))"
    env = [(wire.ENV, b"A=\xff"), (wire.ENV, b"B=1\n2"), (wire.ENV, b"LC_ALL=C.UTF-8")]
    job = client.run(python(text) + words, *env)
    seen = job.out[1].decode()
    assert repr(words) in seen
    assert "b'A': b'\\xff'" in seen and "b'B': b'1\\n2'" in seen and "HOME" not in seen


def test_two_thousand_arguments_in_small_pieces(client: Client) -> None:
    words = [b"argument %d" % i for i in range(2000)]
    ident = client.start(
        python("import sys; print(len(sys.argv), sys.argv[-1])") + words, piece=101
    )
    client.until(lambda: client.jobs[ident].over)
    assert client.jobs[ident].out[1] == b"2001 argument 1999\n"


def test_cwd_umask_limits(client: Client, tmp_path: Path) -> None:
    job = client.run(
        shell("pwd; umask; ulimit -n"),
        (wire.CWD, os.fsencode(tmp_path)),
        (wire.UMASK, struct.pack("<I", 0o077)),
        (wire.RLIMIT, struct.pack("<IQQ", 7, 99, 99)),
    )
    assert job.out[1].decode().split() == [str(tmp_path), "0077", "99"]


def test_signal_state_is_the_default(client: Client) -> None:
    job = client.run(python("print(open('/proc/self/status').read())"))
    lines = dict(line.split(":\t") for line in job.out[1].decode().splitlines() if ":\t" in line)
    assert int(lines["SigBlk"], 16) == 0
    # Python ignores SIGPIPE (13) and SIGXFSZ (25) for itself. 32 and 33 are the C library's own: it
    # lets nobody set them, so they stay as whoever ran the tests has them.
    assert int(lines["SigIgn"], 16) & ~(1 << 12 | 1 << 24 | 1 << 31 | 1 << 32) == 0


def test_script_without_a_first_line_is_run_by_the_shell(client: Client, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$0 $1"\n')
    script.chmod(0o755)
    job = client.run([b"script", b"x"], (wire.ENV, b"PATH=/nowhere:" + os.fsencode(tmp_path)))
    assert job.out[1].decode() == f"{script} x\n"


def test_failures_say_their_stage(client: Client, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("text")
    path = (wire.ENV, b"PATH=/nowhere:" + os.fsencode(tmp_path) + b":/bin")
    limits = (wire.RLIMIT, struct.pack("<IQQ", 7, 9, 8))
    cases = [
        ([b"no-such-command"], [path], (2, 7)),
        ([b"/no/such/command"], [], (2, 7)),
        ([b""], [path], (2, 7)),
        ([b"plain"], [path], (13, 7)),
        ([bytes(plain)], [], (13, 7)),
        ([b"true"], [path, (wire.CWD, b"/no/such/folder")], (2, 5)),
        ([b"true"], [path, limits], (22, 2)),
        ([b"true"], [(wire.RLIMIT, struct.pack("<IQQ", 99, 9, 9))], (22, 1)),
        ([], [path], (22, 1)),
        ([b"nul\0nul"], [], (22, 1)),
        ([b"true"], [(wire.ENV, b"NOTHING")], (22, 1)),
        ([b"true"], [(wire.CLOCK, b"")], (71, 1)),
        ([b"true"], [(99, b"")], (71, 1)),
    ]
    for argv, records, expected in cases:
        job = client.run(argv, *records)
        assert job.failed is not None and job.failed[:2] == expected, (argv, records)
        assert job.started is None


def test_exec_without_a_description(client: Client) -> None:
    client.send(frame(wire.EXEC, 5))
    client.until(lambda: client.jobs[5].failed is not None)


def test_description_over_the_limit(client: Client) -> None:
    ident = client.ids()
    for _ in range(40):
        client.pending += frame(wire.SPEC, ident, bytes(65536))
    client.send(frame(wire.EXEC, ident))
    client.until(lambda: client.jobs[ident].over)
    assert client.jobs[ident].failed is not None and client.jobs[ident].failed[:2] == (7, 1)


def test_too_many_jobs(client: Client) -> None:
    running = [client.start([b"/bin/cat"], eof=False) for _ in range(64)]
    client.until(lambda: all(client.jobs[i].started for i in running))
    job = client.run([b"/bin/true"])
    assert job.failed is not None and job.failed[:2] == (11, 8)
    for ident in running:
        client.send(frame(wire.EOF, ident))
    client.until(lambda: all(client.jobs[i].over for i in running))
    assert client.run([b"/bin/true"]).exit is not None
