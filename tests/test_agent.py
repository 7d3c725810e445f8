"""Our side of a session against the real agent, built for this machine, on a socketpair."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestctl import events
from guestctl.agent import Agent, Job
from guestctl.errors import Detached, GuestHung, GuestLost, RequestFailed
from guestctl.process import PIPE, Host, Process
from guestctl.services import offer
from guestctl.spec import Command
from guestctl.wire import Op
from tests.fairness import FOREVER, Fair, gone, until

ROOT = Path(__file__).parent.parent


class Native:
    """A running agent; `sockets` are both ends of its channel, ours first."""

    def __init__(self, program: Path) -> None:
        self.name = f"guestctl-host-test-{os.getpid()}-{time.monotonic_ns()}"
        self.ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [program, "--fd", str(theirs.fileno()), "--plain", "--socket", self.name],
            pass_fds=[theirs.fileno()],
            env={"ASAN_OPTIONS": "detect_leaks=0"},
        )
        theirs.close()

    def session(self, **options: float) -> Agent:
        """A new session over the same channel, as another process would begin it."""
        return Agent.connect(self.ours.dup(), timeout=20, **options)


@pytest.fixture
def native(program: Path) -> Iterator[Native]:
    made = Native(program)
    yield made
    made.ours.close()
    made.process.kill()
    made.process.wait()


@pytest.fixture
def agent(native: Native) -> Iterator[Agent]:
    made = native.session()
    made.request(Op.PREPARE, timeout=20)
    yield made
    made.close()


def process(agent: Agent, *argv: str | bytes, **options: object) -> Process:
    facts: dict[str, object] = {
        "host": Host("native"),
        "stdin": None,
        "stdout": None,
        "stderr": None,
        "timeout": 60,
        "idle_timeout": None,
        **options,
    }
    command = Command(argv=tuple(os.fsencode(arg) for arg in argv), env=(b"PATH=/usr/bin:/bin",))
    return Process(agent, command, agent.start(command), **facts)  # type: ignore[arg-type]


def test_output_and_status(agent: Agent) -> None:
    result = process(agent, "sh", "-c", "echo out; echo err >&2; exit 3").wait()
    assert (result.stdout, result.stderr, result.status) == (b"out\n", b"err\n", 3)


def test_a_refused_request_tells_why(agent: Agent) -> None:
    with pytest.raises(RequestFailed) as caught:
        agent.request(Op.MOUNT, timeout=20)
    assert caught.value.errno


def test_a_new_session_takes_over_whatever_the_old_one_left(native: Native) -> None:
    agent = native.session(orphan=0.2)
    agent.request(Op.PREPARE, timeout=20)
    flood = process(agent, "cat", "/dev/zero", stdout=io.BytesIO())
    agent.take(flood._job, 5)
    agent.close()
    # The old holder died in the middle of a frame, in both directions.
    native.ours.setblocking(True)
    native.ours.sendall(b"\x10\x00\x00\x00\x01\x00\x00\x00\xff\xff\x00\x00half")
    again = native.session()
    assert again.welcome is not None
    assert process(again, "echo", "here").wait().stdout == b"here\n"
    again.close()


def test_ping_is_answered(agent: Agent) -> None:
    assert agent.ping(10) < 10


def test_an_agent_that_is_killed_is_noticed_by_everybody(native: Native, agent: Agent) -> None:
    running = [process(agent, "sleep", "100") for _ in range(3)]
    caught: list[GuestLost] = []

    def wait(which: Process) -> None:
        try:
            which.wait()
        except GuestLost as error:
            caught.append(error)

    threads = [threading.Thread(target=wait, args=(which,)) for which in running]
    for thread in threads:
        thread.start()
    with Fair(native.process.pid) as fair:
        native.process.kill()
        for thread in threads:
            thread.join(FOREVER)
    assert len(caught) == 3
    assert fair.seconds < 5


def test_an_agent_that_falls_silent_is_noticed(native: Native) -> None:
    agent = native.session(heartbeat=0.5)
    native.process.send_signal(19)  # SIGSTOP
    with Fair() as fair, pytest.raises(GuestLost, match="nothing heard"):
        agent.request(Op.SYNC, timeout=30)
    assert fair.seconds < 3
    agent.close()


def test_an_agent_that_is_stopped_is_hung_within_the_idle_time_out(
    native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guestctl.process._HUNG_LEAST", 0.5)
    agent = native.session()
    agent.request(Op.PREPARE, timeout=20)
    running = process(agent, "sleep", "100", idle_timeout=1.0)
    native.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(GuestHung, match="nothing heard"):
            running.wait()
    finally:
        native.process.send_signal(signal.SIGCONT)
        agent.close()


STOPPED = """
import socket, sys
sys.path.insert(0, sys.argv[2])
from guestctl.wire import Op
from guestctl import process as module
from tests.test_agent import Agent, process
module._STALL = 1.0
agent = Agent.connect(socket.socket(fileno=int(sys.argv[1])), timeout=20, heartbeat=3.0)
agent.request(Op.PREPARE, timeout=20)
script = "echo up; sleep 1; echo over"
running = process(agent, "sh", "-c", script, idle_timeout=3, stdout=sys.stdout.buffer.raw)
print(running.wait().status, flush=True)
"""


def test_a_host_that_stands_still_does_not_take_its_guest_for_hung(native: Native) -> None:
    """Both are stopped for many heartbeats, as by a suspended machine whose clock goes on."""
    handle = native.ours.fileno()
    argv = [sys.executable, "-c", STOPPED, str(handle), str(ROOT)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, pass_fds=[handle]) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"up\n"
        for both in (signal.SIGSTOP, signal.SIGCONT):
            caller.send_signal(both)
            native.process.send_signal(both)
            if both == signal.SIGSTOP:
                time.sleep(5)
        assert caller.communicate(timeout=60)[0] == b"over\n0\n"


def test_closing_tells_who_waits(agent: Agent) -> None:
    running = process(agent, "sleep", "100")
    threading.Timer(0.2, agent.close).start()
    with pytest.raises(GuestLost, match="closed"):
        running.wait()


def test_no_welcome_is_an_error_after_the_deadline() -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(GuestLost, match="did not answer"):
        Agent.connect(ours, timeout=0.3)


def test_capture_has_a_bound(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guestctl.streams.CAPTURE_LIMIT", 1000)
    result = process(agent, "head", "-c", "5000", "/dev/zero").wait()
    assert (len(result.stdout), result.truncated) == (1000, True)


def test_a_sink_that_fails_ends_the_command_and_tells_the_caller(agent: Agent) -> None:
    class Full:
        def write(self, data: bytes, /) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        process(agent, "cat", "/dev/zero", stdout=Full()).wait()
    assert process(agent, "true").wait().status == 0


def test_stdin_that_cannot_be_read_is_not_an_end(agent: Agent) -> None:
    class Broken(io.RawIOBase):
        def read1(self, _size: int) -> bytes:
            raise OSError(5, "Input/output error")

    result = process(agent, "cat", stdin=Broken()).wait()
    assert result.outcome == "signalled"


def test_pipe_gives_a_writer(agent: Agent) -> None:
    running = process(agent, "cat", stdin=PIPE)
    running.stdin.write(b"hello", timeout=20)
    running.stdin.close()
    assert running.wait().stdout == b"hello"


# It reads while it writes, as whoever calls a service that answers early must.
CALLER = """
import socket, sys, threading
s = socket.socket(socket.AF_UNIX)
s.connect(b"\\0" + {name!r}.encode())
s.sendall(b"{service}\\n")
def send():
    try:
        s.sendall(sys.stdin.buffer.read())
        s.shutdown(socket.SHUT_WR)
    except OSError:
        pass
threading.Thread(target=send).start()
try:
    while data := s.recv(65536):
        sys.stdout.buffer.write(data)
except ConnectionError:
    print("refused")
"""


def call(native: Native, agent: Agent, service: str, data: bytes) -> bytes:
    script = CALLER.format(name=native.name, service=service)
    return process(agent, sys.executable, "-c", script, stdin=data).wait().check().stdout


def test_a_guest_calls_a_service_of_the_host(native: Native, agent: Agent) -> None:
    def upper(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data.upper())

    offer(agent, b"upper", upper)
    assert call(native, agent, "upper", b"abc" * 500_000) == b"ABC" * 500_000


def test_a_service_may_be_a_program(native: Native, agent: Agent) -> None:
    def tr(connection: socket.socket) -> None:
        subprocess.run(["tr", "a-c", "x-z"], stdin=connection, stdout=connection, check=True)

    offer(agent, b"tr", tr)
    assert call(native, agent, "tr", b"aabbcc") == b"xxyyzz"


def test_a_service_that_fails_is_an_end_of_file(native: Native, agent: Agent) -> None:
    def fail(_connection: socket.socket) -> None:
        raise RuntimeError("no")

    offer(agent, b"fail", fail)
    assert call(native, agent, "fail", b"") == b""
    assert process(agent, "true").wait().status == 0


def test_what_is_not_offered_is_refused(native: Native, agent: Agent) -> None:
    assert call(native, agent, "none-such", b"") in (b"", b"refused\n")


def test_many_calls_at_once_leave_nothing_behind(native: Native, agent: Agent) -> None:
    def echo(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data)

    offer(agent, b"echo", echo)
    script = CALLER.format(name=native.name, service="echo")
    running = [
        process(agent, sys.executable, "-c", script, stdin=b"%d" % n * 1000) for n in range(16)
    ]
    assert [one.wait().stdout for one in running] == [b"%d" % n * 1000 for n in range(16)]
    until(lambda: not agent._jobs)


def test_a_last_word_after_the_hosts_end_is_heard_and_so_is_the_end(
    native: Native, agent: Agent
) -> None:
    """Data and end may come in one piece, when the stream is closed on this side already."""
    heard: list[object] = []

    def listen(stream: Job) -> None:
        agent.end_stdin(stream)
        while not isinstance(heard[-1] if heard else None, events.Ended):
            heard.append(agent.take(stream, 20))

    agent.offer(b"late", lambda stream: threading.Thread(target=listen, args=(stream,)).start())
    script = f"""
import socket
s = socket.socket(socket.AF_UNIX)
s.connect(b"\\0" + {native.name!r}.encode())
s.sendall(b"late\\n")
assert s.recv(1) == b""
s.sendall(b"word")
s.close()
"""
    for _ in range(10):
        heard.clear()
        process(agent, sys.executable, "-c", script).wait().check()
        until(lambda: len(heard) > 1 and isinstance(heard[-1], events.Ended))
        said = b"".join(event.data for event in heard if isinstance(event, events.Output))
        assert said == b"word"
    until(lambda: not agent._jobs)


def test_silence_ends_a_session_where_nothing_else_does(native: Native) -> None:
    """The port stays open and nobody says a word: a second later the command is an orphan."""
    first = native.session(orphan=0.2, heartbeat=0.5, hangs_up=False)
    first.request(Op.PREPARE, timeout=20)
    job = first.start(Command(argv=(b"/bin/sleep", b"1000")))
    started = first.take(job, 20)
    assert isinstance(started, events.Started)
    first.ping(20)
    first.close()
    assert gone(started.pid)

    def jobs() -> tuple[int, ...]:
        again = native.session()
        assert again.welcome is not None
        again.close()
        return again.welcome.jobs

    until(lambda: not jobs())  # the agent hears of it from the command's supervisor, a little later


class Slow:
    """Takes `limit` bytes, then no more: as a caller that is killed at a byte of its output."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self._left = limit

    def write(self, data: bytes, /) -> None:
        if len(data) > self._left:
            raise KeyboardInterrupt
        self._left -= len(data)
        self.data += data


class Into:
    def __init__(self, data: bytearray) -> None:
        self._data = data

    def write(self, data: bytes, /) -> None:
        self._data += data


def attached(agent: Agent, job: int, **options: object) -> Process:
    facts: dict[str, object] = {"stdin": None, "stdout": None, "stderr": None}
    facts |= {"timeout": 60, "idle_timeout": None, **options}
    command = Command(argv=())
    return Process(agent, command, agent.attach(job), host=Host("native"), **facts)  # type: ignore[arg-type]


def test_attach_hands_on_exactly_what_was_not_taken(native: Native) -> None:
    agent = native.session()
    agent.request(Op.PREPARE, timeout=20)
    got = b""
    running = process(agent, "sh", "-c", "seq 200000; exit 7")
    for rounds in range(1, 1000):
        for _ in range(2 * rounds):
            if running.result is None:
                running._step()
        if running.result is not None:
            break
        got += running._captures[0].value()
        # The holder dies: what it has not taken is on its way, or in the guest.
        agent.close()
        agent = native.session()
        assert agent.welcome is not None
        assert agent.welcome.jobs == (running._job.id,)
        running = attached(agent, running._job.id)
    assert rounds > 2
    assert got + running._captures[0].value() == b"".join(b"%d\n" % n for n in range(1, 200001))
    assert running.result is not None
    assert running.result.status == 7
    agent.close()


def test_what_is_told_again_can_be_left_out(native: Native) -> None:
    """All holders write into the same file, and die between writing and saying so; the next one
    sees by the file's size what to leave out."""
    agent = native.session()
    agent.request(Op.PREPARE, timeout=20)
    files = {1: bytearray(), 2: bytearray()}
    sinks = {"stdout": Into(files[1]), "stderr": Into(files[2])}
    script = "seq 100000; echo first >&2; seq 100001 200000; echo last >&2"
    running = process(agent, "sh", "-c", script, **sinks)
    again = 0
    for rounds in range(1, 1000):
        begins = running.begin()
        assert begins[0] <= len(files[1]) and begins[1] <= len(files[2])
        again += len(files[1]) - begins[0]
        for _ in range(rounds):
            if running.result is None:
                running._step()
        if running.result is not None:
            break
        while not running._job.queue:
            time.sleep(0.001)
        if isinstance(running._job.queue[0], events.Output):
            event = agent.take(running._job, 20)
            assert isinstance(event, events.Output)
            running._sinks[event.channel].write(event.data)
        agent.close()
        agent = native.session()
        seen = len(files[1]), len(files[2])
        running = attached(agent, running._job.id, seen=seen, **sinks)
    assert files[1] == b"".join(b"%d\n" % n for n in range(1, 200001))
    assert files[2] == b"first\nlast\n"
    assert rounds > 2 and again > 0
    assert running.result is not None and running.result.output_from == begins
    agent.close()


def test_an_end_that_came_but_was_not_taken_is_not_lost(native: Native) -> None:
    agent = native.session()
    agent.request(Op.PREPARE, timeout=20)
    running = process(agent, "sh", "-c", "exit 9")
    until(lambda: len(running._job.queue) >= 4)  # STARTED, two ends of output, EXIT
    agent.close()
    again = native.session()
    assert attached(again, running._job.id).wait().status == 9
    again.close()
    last = native.session()
    assert last.welcome is not None
    assert last.welcome.jobs == ()
    last.close()


def test_what_was_taken_is_let_go_of_before_the_connection_is(native: Native) -> None:
    """The agent reads nothing for a while: a close would take along what waits to be sent."""
    agent = native.session()
    agent.request(Op.PREPARE, timeout=20)
    running = process(agent, "true")
    until(lambda: len(running._job.queue) >= 4)
    native.process.send_signal(signal.SIGSTOP)
    with agent._lock:
        agent._link.send(agent._session.ping(1) * 100_000)
    assert running.wait().status == 0
    threading.Timer(0.2, native.process.send_signal, (signal.SIGCONT,)).start()
    agent.settle(60)
    agent.close()
    again = native.session()
    assert again.welcome is not None
    assert again.welcome.jobs == ()
    again.close()


def test_a_session_that_was_settled_is_followed_by_one_without_filler(native: Native) -> None:
    for number in range(3):
        agent = native.session(orderly=True)
        if not number:
            agent.request(Op.PREPARE, timeout=20)
        running = process(agent, "sleep", "1000")
        running.begin()
        agent.forget_all()
        agent.settle(60)
        # What threads still have to say goes nowhere: it might be cut in the middle.
        agent.signal(running._job, signal.SIGTERM)
        agent.close()


def test_attaching_to_nobody_is_an_error_result(agent: Agent) -> None:
    result = attached(agent, 4711).wait()
    assert (result.outcome, result.status) == ("error", 125)


def test_detaching_leaves_the_command_alone(native: Native, tmp_path: Path) -> None:
    agent = native.session()
    agent.request(Op.PREPARE, timeout=20)
    script = f"until test -e {tmp_path}/go; do /bin/sleep 0.02; done; echo on; exit 4"
    job = agent.start(Command(argv=(b"/bin/sh", b"-c", script.encode())))
    facts = {"stdin": None, "stdout": None, "stderr": None, "timeout": None, "idle_timeout": None}
    running = Process(agent, Command(argv=()), job, host=Host("native", left=agent.close), **facts)  # type: ignore[arg-type]
    threading.Timer(0.1, running.detach).start()
    with pytest.raises(Detached):
        running.wait()
    again = native.session()
    (tmp_path / "go").touch()
    result = attached(again, job.id).wait()
    assert (result.stdout, result.status) == (b"on\n", 4)
    again.close()


def test_a_second_interrupt_ends_the_guest(native: Native, agent: Agent) -> None:
    """The first kills the command; one that comes while that is not done kills the guest."""
    ended = []
    job = agent.start(Command(argv=(b"/bin/sleep", b"100")))
    facts = {"stdin": None, "stdout": Slow(0), "stderr": None, "timeout": None}
    running = Process(
        agent,
        Command(argv=()),
        job,
        host=Host("native", end=lambda: ended.append(1)),
        idle_timeout=None,
        **facts,  # type: ignore[arg-type]
    )
    native.process.send_signal(signal.SIGSTOP)
    main = threading.get_ident()

    def interrupt_twice() -> None:
        time.sleep(0.2)
        signal.pthread_kill(main, signal.SIGINT)
        until(lambda: running._why_killed)
        time.sleep(0.2)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt_twice).start()
    with pytest.raises(KeyboardInterrupt):
        running.wait()
    assert ended == [1]


def test_a_terminal_and_its_size(agent: Agent) -> None:
    command = Command(
        argv=(b"/bin/sh", b"-c", b"stty size; read x; stty size"),
        env=(b"PATH=/usr/bin:/bin",),
        window=(30, 90),
    )
    out = io.BytesIO()
    facts = {"stdin": PIPE, "stdout": out, "stderr": None, "timeout": 60, "idle_timeout": None}
    running = Process(agent, command, agent.start(command), host=Host("native"), **facts)  # type: ignore[arg-type]
    running.resize(40, 100_000)
    running.stdin.write(b"\n")
    running.wait().check()
    assert out.getvalue().endswith(b"40 65535\r\n")


def test_memory_of_the_guest(agent: Agent) -> None:
    total, available, _swap, _free = agent.request(Op.STATUS, timeout=20).memory
    assert 0 < available <= total


@pytest.mark.parametrize("what", ["timeout", "idle_timeout"])
def test_time_outs_follow_the_guests_pace(agent: Agent, what: str) -> None:
    command = Command(argv=(b"/bin/sleep", b"100"))
    facts = {"stdin": None, "stdout": None, "stderr": None, "timeout": None, "idle_timeout": None}
    running = Process(
        agent,
        command,
        agent.start(command),
        host=Host("native", pace=4.0),
        **{**facts, what: 0.1},  # type: ignore[arg-type]
    )
    result = running.wait()
    assert (result.outcome, result.status, result.pace) == ("timeout", 124, 4.0)
    assert result.seconds >= 0.4
    assert "0.1 s (0.4 s in this guest, 4 times slower)" in result.error


def test_a_guest_that_is_kept_from_running_does_not_time_out(agent: Agent) -> None:
    """For four fifths of the time, says the host: the limit of 1 s is reached after 5 s."""
    begin = time.monotonic()
    command = Command(argv=(b"/bin/sleep", b"1.2"))
    host = Host("native", starved=lambda: 0.8 * (time.monotonic() - begin))
    facts = {"stdin": None, "stdout": None, "stderr": None, "idle_timeout": None}
    running = Process(agent, command, agent.start(command), host=host, timeout=1, **facts)  # type: ignore[arg-type]
    assert running.wait().outcome == "exited"


def test_interrupts_in_the_middle_of_a_flood(agent: Agent) -> None:
    """However they fall, the command ends, and the session is as good as before."""
    for rounds in range(30):
        flood = process(agent, "cat", "/dev/zero", stdout=Discard())
        before = signal.signal(signal.SIGINT, lambda *_, flood=flood: flood.interrupt())
        timer = threading.Timer(0.01 + 0.002 * rounds, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                flood.wait()
        finally:
            signal.signal(signal.SIGINT, before)
        assert flood.result is not None
        assert flood.result.outcome == "signalled"
    assert process(agent, "echo", "fine").wait().stdout == b"fine\n"


class Discard:
    def write(self, _data: bytes, /) -> None:
        return


def test_a_slow_reader_is_not_the_commands_silence(agent: Agent) -> None:
    class Slow:
        def write(self, data: bytes, /) -> None:
            time.sleep(1.5)

    result = process(agent, "echo", "x", stdout=Slow(), idle_timeout=1.0).wait()
    assert (result.outcome, result.status) == ("exited", 0)


def test_a_time_out_is_one_even_before_the_command_runs(agent: Agent) -> None:
    for _ in range(20):
        result = process(agent, "sleep", "1000", timeout=0.0001).wait()
        assert (result.outcome, result.status) == ("timeout", 124)
