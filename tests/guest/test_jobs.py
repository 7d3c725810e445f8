"""A job's life when its caller dies, and what can be seen of it from outside."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from guestctl import Pool, PoolError, journal
from guestctl.image import Image
from guestctl.places import Places
from guestctl.wire import CREDIT_WINDOW
from tests.fairness import FOREVER, until
from tests.guest.conftest import PoolOf

GUESTCTL = [sys.executable, "-m", "guestctl"]


@pytest.fixture(scope="module")
def ours_of(armv5l_image: Image, places: Places) -> Iterator[PoolOf]:
    """Pools that other modules' tests do not look into: their journals are counted here."""
    made: dict[str, Pool] = {}
    with ExitStack() as stack:

        def pool_of(channel: str) -> Pool:
            if channel not in made:
                name = f"jobs-{channel}-{os.getpid()}"
                pool = Pool("armv5l", 1, name=name, places=places, channel=channel)
                made[channel] = stack.enter_context(pool)
            return made[channel]

        yield pool_of


@pytest.fixture
def ours(ours_of: PoolOf, channel: str) -> Pool:
    return ours_of(channel)


def state(pool: Pool) -> str:
    return str(pool.status()[0]["state"])


def events(pool: Pool) -> list[str]:
    return [event["event"] for event in journal.read(pool.journal)]


def started(pool: Pool, *argv: str, **options: object) -> subprocess.Popen[bytes]:
    """`guestctl run`, with its command under way."""
    process = subprocess.Popen(
        [*GUESTCTL, "run", "--name", pool.name, *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )
    until(lambda: pool.status()[0]["job"])
    return process


def killed(pool: Pool, *argv: str) -> tuple[str, bytes]:
    """A job whose caller was killed, and what the caller had of its output."""
    process = started(pool, *argv)
    assert process.stdout is not None
    got = process.stdout.read(1)
    process.kill()
    got += process.stdout.read()
    process.communicate()
    until(lambda: state(pool) == "orphaned")
    return str(pool.status()[0]["job"]), got


def check_joined(first: bytes, rest: bytes, whole: bytes) -> None:
    """No byte is missing. Those that the dead caller had handed on, and not yet said so, come
    again; tests/test_agent.py shows that no others do.
    """
    assert whole.startswith(first)
    assert whole.endswith(rest)
    assert 0 <= len(first) + len(rest) - len(whole) <= CREDIT_WINDOW


@pytest.mark.channels("tcp", "serial")
def test_a_caller_that_is_killed_leaves_an_orphan_that_run_takes_over(ours: Pool) -> None:
    script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo line $i; sleep 0.05; done; exit 6"
    job, first = killed(ours, "--", "sh", "-c", script)
    for fresh in (False, True):
        with pytest.raises(PoolError, match="free"):
            ours.lease(timeout=0.3, fresh=fresh)
    taken = subprocess.run(
        [*GUESTCTL, "run", "--name", ours.name, "--attach", job],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=FOREVER,
        check=False,
    )
    assert taken.returncode == 6, taken.stderr
    assert b"its output follows, from byte" in taken.stderr
    check_joined(first, taken.stdout, b"".join(b"line %d\n" % n for n in range(1, 61)))
    assert state(ours) == "ready"
    assert [event for event in events(ours) if event in ("orphan", "attach", "expired")] == [
        "orphan",
        "attach",
    ]


@pytest.mark.channels("tcp")
def test_what_is_in_the_log_already_does_not_come_again(ours: Pool, tmp_path: Path) -> None:
    """Stopped in the middle of its output and killed: the log's size says what is there."""
    log = tmp_path / "log"
    argv = [*GUESTCTL, "run", "--name", ours.name]
    whole = b"".join(b"%d\n" % n for n in range(1, 100001))
    with open(log, "wb") as out:
        with subprocess.Popen(
            # It must not have ended, and its end been taken, before its caller is killed.
            [*argv, "--", "sh", "-c", "seq 100000; sleep 3"],
            stdin=subprocess.DEVNULL,
            stdout=out,
        ) as caller:
            until(lambda: log.stat().st_size)
            caller.kill()
        until(lambda: state(ours) == "orphaned")
        for _ in range(2):
            # The second one finds that nothing is left to take over.
            seen = str(log.stat().st_size)
            done = subprocess.run(
                [*argv, "--attach", str(ours.status()[0]["job"] or "g0:1"), "--seen", seen],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                timeout=120,
                check=False,
            )
            assert log.read_bytes() == whole
    assert done.returncode == 125 and b"no orphan" in done.stderr


@pytest.mark.channels("tcp")
def test_its_output_waits_and_so_does_it(ours: Pool) -> None:
    """Much more than is kept: the command is held back, and nothing is lost."""
    job, first = killed(ours, "--", "seq", "1000000")
    out = io.BytesIO()
    with ours.adopt(job) as guest:
        result = guest.attach(stdout=out).wait()
    assert result.status == 0
    check_joined(first, out.getvalue(), b"".join(b"%d\n" % n for n in range(1, 1000001)))


@pytest.mark.channels("tcp")
def test_an_orphan_is_killed_when_its_time_is_over(ours: Pool) -> None:
    beat = "while :; do date +%s%N >/tmp/orphan; sleep 0.05; done"
    killed(ours, "--orphan-timeout", "1.5", "--", "sh", "-c", f"echo up; {beat}")
    # The lease is given when it is gone, and not before.
    with ours.lease(timeout=FOREVER) as guest:
        first = guest.run(["cat", "/tmp/orphan"], timeout=FOREVER).check().stdout
        assert guest.run(["sh", "-c", "sleep 0.5; cat /tmp/orphan"]).check().stdout == first
    lasting = [name for name in events(ours) if name in ("orphan", "attach", "expired")]
    assert lasting[-2:] == ["orphan", "expired"]


def test_nobody_takes_over_what_is_in_use_or_is_not_there(ours: Pool) -> None:
    with pytest.raises(PoolError, match="0 guests"):
        ours.adopt()
    with pytest.raises(PoolError, match="no orphan"):
        ours.adopt("g0:77")
    with ours.lease(FOREVER) as guest:
        process = guest.start(["sleep", "100"])
        with pytest.raises(PoolError, match="another process"):
            ours.adopt(process.name)
    with pytest.raises(PoolError, match="not there"):
        ours.adopt("g7:1")


@pytest.mark.channels("tcp")
def test_two_orphans_of_one_guest(ours: Pool) -> None:
    script = (
        "from guestctl import Pool; import time\n"
        f"guest = Pool.attach({ours.name!r}).lease({FOREVER})\n"
        "for n in (3, 4): guest.start(['sh', '-c', f'sleep 1; echo {n}; exit {n}'])\n"
        "guest.ping(); print('up', flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        holder.kill()
    until(lambda: state(ours) == "orphaned")
    with ours.adopt() as guest:
        assert len(guest.orphans) == 2
        with pytest.raises(PoolError, match="name one"):
            guest.attach()
        results = [guest.attach(number).wait() for number in guest.orphans]
    ends = sorted((result.stdout, result.status) for result in results)
    assert ends == [(b"3\n", 3), (b"4\n", 4)]


@pytest.mark.channels("tcp", "serial")
def test_an_orphan_keeps_the_share_until_it_has_ended(ours: Pool) -> None:
    job, _ = killed(ours, "--cwd", "/work", "--", "sh", "-c", "echo up; sleep 1; echo made >file")
    share = Path(ours.status()[0]["share"])
    with ours.adopt(job) as guest:
        assert guest.work.mounted
        guest.attach(stdin=None).wait().check()
    # Unmounted with the release, so the host sees all of it.
    assert (share / "file").read_bytes() == b"made\n"
    with ours.lease(FOREVER) as guest:
        assert not guest.work.mounted
        with guest.mounted():
            guest.run(["rm", "/work/file"], timeout=FOREVER).check()


@pytest.mark.channels("tcp", "serial")
def test_released_with_a_command_under_way(ours: Pool) -> None:
    """The lease is given back in order: then nobody will ask for the command any more."""
    with ours.lease(FOREVER) as guest:
        guest.start(["sleep", "1000"])
    assert state(ours) in ("ready", "orphaned")
    with ours.lease(FOREVER) as guest:
        assert guest.run(["true"], timeout=FOREVER).status == 0


@pytest.mark.channels("tcp")
def test_status_shows_the_job_and_what_it_does(ours: Pool) -> None:
    with ours.lease(FOREVER) as guest:
        sink = io.BytesIO()
        script = "head -c 100000 /dev/zero; sleep 1000"
        process = guest.start(["sh", "-c", script], stdout=sink, timeout=99)
        thread = threading.Thread(target=process.wait)
        thread.start()
        until(lambda: (ours.status()[0]["jobs"] or [{}])[0].get("output") == 100000)
        until(lambda: ours.status()[0]["guest_memory"])
        (facts,) = ours.status()
        assert (facts["state"], facts["job"]) == ("leased", process.name)
        (job,) = facts["jobs"]
        assert (job["argv"], job["timeout"]) == (["sh", "-c", script], 99)
        total, available, swap, free = facts["guest_memory"]
        assert 100 << 10 < total < 300 << 10
        assert 0 < available < total
        assert free <= swap
        done = subprocess.run(
            [*GUESTCTL, "pool", "status", "--name", ours.name], capture_output=True, check=True
        )
        assert process.name.encode() in done.stdout
        process.cancel()
        thread.join(FOREVER)
    assert ours.status()[0]["job"] is None


def test_the_watch_has_plain_lines_in_a_pipe(ours: Pool) -> None:
    with ours.lease(FOREVER) as guest:
        process = guest.start(["sh", "-c", "while :; do :; done"])
        argv = [*GUESTCTL, "pool", "status", "--watch", "--interval", "0.3", "--name", ours.name]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as watch:
            assert watch.stdout is not None
            # Memory is told with the job's next beat, and on a busy machine the guest may get less
            # than a hundredth of a processor for a while.
            for line in watch.stdout:
                row = line.decode().split()
                if row[5] != "-" and re.fullmatch(r"[1-9]\d*%", row[4]):
                    break
            watch.send_signal(signal.SIGINT)
            assert watch.wait(FOREVER) == 0
        process.cancel()
        process.wait()
    assert row[:3] == ["g0", "leased", process.name]
    assert re.fullmatch(r"0:\d\d:\d\d", row[3])
    assert re.fullmatch(r"\d+/\d+M", row[5])


def test_events_are_followed_until_the_pool_is_down(armv5l_image: Image, places: Places) -> None:
    with Pool("armv5l", 1, name=f"events-{os.getpid()}", places=places, spares=0) as pool:
        argv = [*GUESTCTL, "pool", "events", "--follow", "--name", pool.name]
        follower = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert follower.stdout is not None
        lines = [json.loads(follower.stdout.readline()) for _ in range(2)]
        with pool.lease(FOREVER) as guest:
            guest.run(["sh", "-c", "exit 3"], timeout=FOREVER)
        with pool.lease(FOREVER, fresh=True) as guest:
            os.kill(pool.status()[0]["qemu_pid"], signal.SIGKILL)
            until(lambda: state(pool) == "lost")
            assert guest.name == "g0"
    out, _ = follower.communicate(timeout=FOREVER)
    lines += [json.loads(line) for line in out.splitlines()]
    assert follower.returncode == 0
    assert [line["event"] for line in lines] == [
        *("boot", "ready", "lease", "run", "exit", "release"),
        *("replace", "stopped", "boot", "ready", "lease", "lost", "release"),
    ]
    ended = next(line for line in lines if line["event"] == "exit")
    assert (ended["status"], ended["argv"]) == (3, "sh -c exit 3")
    assert "signal 9" in next(line for line in lines if line["event"] == "lost")["cause"]


def test_the_result_file_has_all_of_it(ours: Pool, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    argv = [*GUESTCTL, "run", "--name", ours.name, "--result", str(result), "--idle-timeout", "0.5"]
    before = time.time()
    done = subprocess.run(
        [*argv, "--", "sh", "-c", "i=0; while [ $i -lt 9000 ]; do i=$((i+1)); done; sleep 1000"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=FOREVER,
    )
    facts = json.loads(result.read_text())
    assert done.returncode == facts["status"] == 124
    assert (facts["version"], facts["outcome"], facts["guest"]) == (1, "timeout", "g0")
    assert before <= facts["began"] <= facts["ended"] <= time.time() + 1
    assert facts["usage"]["wall"] >= 0.5
    assert "no output" in facts["error"]
    assert facts["pace"] >= 1


@pytest.mark.channels("tcp", "serial")
def test_an_interrupt_of_the_command_line_keeps_the_guest(ours: Pool) -> None:
    qemu = ours.status()[0]["qemu_pid"]
    beat = "setsid sh -c 'while :; do date +%s%N >/tmp/beat; sleep 0.05; done' >/dev/null 2>&1 &"
    wait = "until test -e /tmp/beat; do sleep 0.05; done;"
    process = started(
        ours, "--", "sh", "-c", f"trap '' INT TERM; {beat} {wait} echo up; sleep 1000"
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=FOREVER)
    assert process.returncode == 130
    assert b"interrupted" in err
    with ours.lease(FOREVER) as guest:
        first = guest.run(["cat", "/tmp/beat"], timeout=FOREVER).check().stdout
        assert guest.run(["sh", "-c", "sleep 0.5; cat /tmp/beat"]).check().stdout == first
    assert ours.status()[0]["qemu_pid"] == qemu


def test_a_second_interrupt_ends_the_guest(armv5l_image: Image, places: Places) -> None:
    """The guest is stopped, so that it cannot do what the first one asks for."""
    with Pool("armv5l", 1, name=f"twice-{os.getpid()}", places=places) as pool:
        process = started(pool, "--", "sh", "-c", "echo up; sleep 1000")
        assert process.stdout is not None
        process.stdout.readline()
        qemu = pool.status()[0]["qemu_pid"]
        os.kill(qemu, signal.SIGSTOP)
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        assert b"again" in process.stderr.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=FOREVER)
        assert process.returncode == 130
        until(lambda: state(pool) == "lost")
        assert not Path(f"/proc/{qemu}").exists()


def test_a_guest_whose_command_failed_is_kept(armv5l_image: Image, tmp_path: Path) -> None:
    argv = [*GUESTCTL, "run", "--arch", "armv5l", "--share", str(tmp_path), "--keep-failed", "--"]
    good = subprocess.run(
        [*argv, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    assert b"kept" not in good.stderr
    script = "echo here >/tmp/left; exit 8"
    done = subprocess.run(
        [*argv, "sh", "-c", script], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert done.returncode == 8
    found = re.search(rb"guestctl shell --name (\S+)", done.stderr)
    assert found, done.stderr
    name = found[1].decode()
    try:
        with Pool.attach(name).lease(FOREVER) as guest:
            assert guest.run(["cat", "/tmp/left"], timeout=FOREVER).check().stdout == b"here\n"
    finally:
        subprocess.run([*GUESTCTL, "pool", "down", "--name", name], check=True, timeout=FOREVER)
