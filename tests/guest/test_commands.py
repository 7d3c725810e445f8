"""Commands in a real guest: arguments, streams, statuses, time."""

from __future__ import annotations

import hashlib
import io
import random
import threading
import time

import pytest

from guestctl import PIPE, CommandFailed, Guest, UsageError
from tests.fairness import FOREVER, Fair, until


def text(guest: Guest, *argv: str | bytes, **options: object) -> str:
    return guest.run(argv, timeout=60, **options).check().stdout.decode(errors="backslashreplace")


@pytest.mark.channels("tcp", "serial")
def test_it_is_what_it_says(guest: Guest) -> None:
    assert text(guest, "uname", "-m") == "armv5tejl\n"
    assert text(guest, "id", "-u") == "0\n"


def test_a_program_lies_where_it_lay_before(guest: Guest) -> None:
    """Position-independent, with libraries: QEMU would translate it anew at every other address."""
    maps = [text(guest, "/usr/bin/cat", "/proc/self/maps") for _ in range(2)]
    assert "libc.so.6" in maps[0]
    assert maps[0] == maps[1]


def test_a_fault_maps_few_pages(guest: Guest) -> None:
    """Init sees to it by debugfs, and leaves none of it to be seen."""
    look = "mount -t debugfs none /mnt && cat /mnt/fault_around_bytes; umount /mnt"
    assert text(guest, "sh", "-c", look) == "16384\n"
    assert "debugfs" not in text(guest, "cat", "/proc/mounts")


@pytest.mark.channels("tcp", "serial")
@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255)])
def test_statuses(guest: Guest, script: str, status: int) -> None:
    result = guest.run(["sh", "-c", script], timeout=60)
    assert (result.outcome, result.status) == ("exited", status)


@pytest.mark.channels("tcp", "serial")
def test_a_signal_is_told_from_a_status(guest: Guest) -> None:
    result = guest.run(["sh", "-c", "kill -SEGV $$"], timeout=60)
    assert (result.outcome, result.status, result.signal) == ("signalled", 139, 11)


@pytest.mark.channels("tcp")
@pytest.mark.parametrize(
    ("argv", "status"),
    [(["no-such-program"], 127), (["/no/such"], 127), (["/etc/passwd"], 126), (["/etc"], 126)],
)
def test_what_cannot_be_executed(guest: Guest, argv: list[str], status: int) -> None:
    result = guest.run(argv, timeout=60)
    assert (result.outcome, result.status) == ("error", status)
    with pytest.raises(CommandFailed):
        result.check()


@pytest.mark.channels("tcp", "serial")
def test_a_missing_working_directory_is_named(guest: Guest) -> None:
    result = guest.run(["true"], cwd="/no/such", timeout=60)
    assert result.status == 125
    assert "working directory" in result.error


@pytest.mark.channels("tcp")
def test_two_thousand_arguments_of_any_bytes(guest: Guest) -> None:
    rng = random.Random(1)
    args = [bytes(rng.choice(range(1, 256)) for _ in range(rng.randrange(40))) for _ in range(1997)]
    args += [b"a\nb", b"", b"\xff\xfe"]
    result = guest.run(["printf", r"%s\0", *args], timeout=120).check()
    assert result.stdout.split(b"\0")[:-1] == args


@pytest.mark.channels("tcp", "serial")
def test_environment_is_small_and_as_given(guest: Guest) -> None:
    lines = text(guest, "env", env={"A": "x\ny", "B": b"\xff".decode(errors="surrogateescape")})
    names = {line.partition("=")[0] for line in lines.splitlines() if "=" in line}
    assert names == {"PATH", "HOME", "LANG", "A", "B"}
    assert "A=x\ny\n" in lines
    assert "B=\\xff\n" in lines


def test_an_environment_over_the_limit_names_the_limit(guest: Guest) -> None:
    with pytest.raises(UsageError) as caught:
        guest.run(["true"], env={"A": "x" * 10_000_000})
    assert "2,097,152" in caught.value.hint


def test_user_umask_and_limits(guest: Guest) -> None:
    script = "id -u; id -g; umask; ulimit -n"
    result = guest.run(
        ["sh", "-c", script], user=(1234, 99), umask=0o077, limits={7: (64, 64)}, timeout=60
    )
    assert result.stdout.split() == [b"1234", b"99", b"0077", b"64"]


@pytest.mark.channels("tcp", "serial")
def test_streams_are_apart_and_live(guest: Guest) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    process = guest.start(
        ["sh", "-c", "echo out; echo err >&2; read line; echo got $line"],
        stdin=PIPE,
        stdout=out,
        stderr=err,
        timeout=60,
    )
    waiter = threading.Thread(target=process.wait)
    waiter.start()
    until(lambda: out.getvalue() and err.getvalue())
    process.stdin.write(b"line\n")
    waiter.join(FOREVER)
    assert (out.getvalue(), err.getvalue()) == (b"out\ngot line\n", b"err\n")


def test_a_hundred_megabytes_come_back_as_they_went(guest: Guest) -> None:
    block = random.Random(2).randbytes(1 << 20)
    size = 100
    source = io.BytesIO(block * size)
    digest = hashlib.sha256()

    class Sink:
        size = 0

        def write(self, data: bytes, /) -> None:
            self.size += len(data)
            digest.update(data)

    sink = Sink()
    guest.run(["cat"], stdin=source, stdout=sink, timeout=240).check()
    assert sink.size == len(block) * size
    assert digest.digest() == hashlib.sha256(block * size).digest()


@pytest.mark.channels("tcp")
def test_stdin_that_nobody_reads_is_swallowed(guest: Guest) -> None:
    assert guest.run(["true"], stdin=b"x" * 3_000_000, timeout=60).status == 0


@pytest.mark.channels("tcp")
def test_a_flood_does_not_starve_another(guest: Guest) -> None:
    class Slow:
        def write(self, data: bytes, /) -> None:
            time.sleep(0.05)

    flood = guest.start(["cat", "/dev/zero"], stdout=Slow(), timeout=60)
    waiter = threading.Thread(target=flood.wait)
    waiter.start()
    try:
        qemu = guest._folder.qemu()
        assert qemu is not None
        for _ in range(5):
            with Fair(qemu.pid) as fair:
                assert text(guest, "echo", "here") == "here\n"
            assert fair.seconds < 5
    finally:
        flood.cancel()
        waiter.join(FOREVER)
    assert flood.result is not None
    assert flood.result.outcome == "signalled"


@pytest.mark.channels("tcp", "serial")
def test_several_at_once(guest: Guest) -> None:
    processes = [
        guest.start(["sh", "-c", f"sleep 0.{n}; echo {n}; exit {n}"], timeout=60) for n in range(8)
    ]
    results = [process.wait() for process in processes]
    assert [result.status for result in results] == list(range(8))
    assert [result.stdout for result in results] == [b"%d\n" % n for n in range(8)]


@pytest.mark.channels("tcp")
def test_time_out(guest: Guest) -> None:
    result = guest.run(["sleep", "100"], timeout=0.5)
    assert (result.outcome, result.status) == ("timeout", 124)
    assert guest.run(["true"], timeout=60).status == 0


@pytest.mark.channels("tcp")
def test_idle_time_out_counts_from_the_last_output(guest: Guest) -> None:
    script = "for i in 1 2 3 4; do echo $i; sleep 0.4; done; sleep 100"
    result = guest.run(["sh", "-c", script], idle_timeout=2)
    assert result.outcome == "timeout"
    assert result.stdout == b"1\n2\n3\n4\n"


@pytest.mark.channels("tcp")
def test_a_signal_reaches_the_whole_group(guest: Guest) -> None:
    script = "trap 'echo parent' USR1; (trap 'echo child; exit' USR1; echo up; sleep 100) & wait"
    out = io.BytesIO()
    process = guest.start(["bash", "-c", script], stdout=out, timeout=60, stdin=PIPE)
    waiter = threading.Thread(target=process.wait)
    waiter.start()
    until(lambda: out.getvalue() == b"up\n")
    process.signal(10)
    waiter.join(FOREVER)
    assert b"parent" in out.getvalue()


def test_nothing_survives_a_command(guest: Guest) -> None:
    script = "setsid sh -c 'exec >/dev/null 2>&1; sleep 7777' & echo started"
    assert text(guest, "sh", "-c", script) == "started\n"
    # Each command has a PID namespace; the scratch disk tells whether the daemon's ended.
    beat = "setsid sh -c 'while :; do date +%N >/tmp/beat; sleep 0.05; done' >/dev/null 2>&1 &"
    text(guest, "sh", "-c", f"{beat} sleep 1")
    first = text(guest, "cat", "/tmp/beat")
    assert text(guest, "sh", "-c", "sleep 1; cat /tmp/beat") == first


@pytest.mark.channels("tcp", "serial")
def test_cancel_ends_what_ignores_signals_and_keeps_the_guest(guest: Guest) -> None:
    process = guest.start(["sh", "-c", "trap '' TERM INT HUP; sleep 100"])
    time.sleep(0.5)
    process.cancel()
    assert process.wait().outcome == "signalled"
    assert guest.run(["true"], timeout=60).status == 0


@pytest.mark.channels("tcp")
def test_usage_is_reported(guest: Guest) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    usage = guest.run(["sh", "-c", script], timeout=60).check().usage
    assert 0 < usage.user <= usage.wall + 0.1
    assert usage.max_resident > 0


def test_the_clock_is_the_hosts(guest: Guest) -> None:
    before = time.time()
    assert before - 2 < float(text(guest, "date", "+%s")) < time.time() + 2


def test_ping(guest: Guest) -> None:
    assert 0 < guest.ping(FOREVER) < FOREVER


def test_there_is_swap(guest: Guest) -> None:
    until(lambda: "/scratch/swap" in text(guest, "cat", "/proc/swaps"))
