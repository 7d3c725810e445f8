"""The agent, built for this machine with sanitizers, on a socketpair: no guest, no privileges."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.agent import client as wire
from tests.agent.client import Client, frame
from tests.fairness import gone, until

ROOT = Path(__file__).parent.parent
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


@pytest.fixture
def agent(program: Path, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(program, tmp_path / "agent.log")
    yield agent
    agent.stop()


@pytest.fixture
def client(agent: Agent) -> Client:
    return agent.prepared()


def shell(text: str) -> list[bytes]:
    return [b"/bin/sh", b"-c", text.encode()]


def python(text: str) -> list[bytes]:
    return [PYTHON, b"-c", text.encode()]


def waits_for(path: Path) -> str:
    """A line of shell that waits until a file is there."""
    return f"until test -e {path}; do sleep 0.02; done"


# -- sessions


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


# -- commands


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


# -- flow control


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


# -- orphans


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


# -- terminals


def terminal(rows: int = 24, columns: int = 80) -> tuple[int, bytes]:
    return (wire.TTY, struct.pack("<4H", rows, columns, 0, 0))


def window(client: Client, ident: int, rows: int, columns: int) -> None:
    client.send(frame(wire.RESIZE, ident, struct.pack("<4H", rows, columns, 0, 0)))


def test_a_terminal_is_the_controlling_one(client: Client) -> None:
    job = client.run(
        shell("stty size; tty; echo on >/dev/tty; echo err >&2; exit 6"), PATH, terminal(33, 99)
    )
    lines = job.out[1].split(b"\r\n")
    assert lines[0] == b"33 99"
    assert lines[1].startswith(b"/dev/pts/")
    assert lines[2:] == [b"on", b"err", b""]
    assert not job.out[2]
    assert job.exit is not None and (job.exit.kind, job.exit.value) == (0, 6)


def test_a_terminal_passes_every_byte_when_it_is_raw(client: Client) -> None:
    script = "stty raw -echo; echo go; head -c 512 | od -An -v -tu1 | tr -s ' \\n' ' '"
    ident = client.start(shell(script), PATH, terminal(), eof=False)
    job = client.jobs[ident]
    client.until(lambda: job.out[1] == b"go\n")
    client.feed(ident, bytes(range(256)) * 2, eof=False)
    client.until(lambda: job.over)
    assert job.out[1][3:].split() == [b"%d" % n for n in range(256)] * 2


def test_all_that_was_written_to_a_terminal_arrives(client: Client) -> None:
    """Much of it, and the command ends at once: nothing may be lost with the hang-up."""
    job = client.run(
        python("import sys; sys.stdout.buffer.write(b'0123456789abcde\\n' * 100000)"), terminal()
    )
    assert bytes(job.out[1]) == b"0123456789abcde\r\n" * 100000


def test_control_keys_of_a_terminal(client: Client) -> None:
    """Ctrl-C ends what is in the foreground, Ctrl-D is the end of its input."""
    script = "trap 'echo int' INT; sh -c 'echo up; exec cat'; cat; echo end"
    ident = client.start(shell(script), PATH, terminal(), eof=False)
    job = client.jobs[ident]
    client.until(lambda: b"up" in job.out[1])
    client.feed(ident, b"\x03", eof=False)
    client.until(lambda: b"int" in job.out[1])
    client.feed(ident, b"text\n\x04", eof=False)
    client.until(lambda: job.over)
    assert job.out[1].endswith(b"text\r\ntext\r\nend\r\n")


def test_a_window_that_changes_is_signalled(client: Client) -> None:
    script = "trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.05; done"
    ident = client.start(shell(script), PATH, terminal(), eof=False)
    job = client.jobs[ident]
    client.until(lambda: b"up" in job.out[1])
    window(client, ident, 50, 132)
    client.until(lambda: job.over)
    assert b"50 132" in job.out[1]


def test_a_terminal_that_the_command_closes_and_opens_again(client: Client) -> None:
    script = "exec </dev/null >/dev/null 2>&1; sleep 0.2; echo back >/dev/tty"
    assert client.run(shell(script), PATH, terminal()).out[1] == b"back\r\n"


def test_the_end_of_stdin_does_not_end_a_terminal(client: Client) -> None:
    ident = client.start(shell("echo up; sleep 0.2; echo still"), PATH, terminal(), eof=True)
    client.until(lambda: client.jobs[ident].over)
    assert client.jobs[ident].out[1] == b"up\r\nstill\r\n"


def test_a_terminal_of_a_wrong_size_is_an_error(client: Client) -> None:
    job = client.run([b"/bin/true"], (wire.TTY, bytes(7)))
    assert job.failed is not None and job.failed[:2] == (71, 1)


def test_a_window_for_a_job_without_a_terminal_is_nothing(client: Client) -> None:
    ident = client.start([b"/bin/cat"], eof=False)
    window(client, ident, 1, 1)
    window(client, ident + 1, 1, 1)
    client.feed(ident, b"")
    client.until(lambda: client.jobs[ident].over)


# -- what is sent is not yet taken


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


# -- requests


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


# -- service streams


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
