"""Faults from docs/reliability.md, done for real: one pool serves most of them, as lost guests are
replaced. `LIMIT` is far beyond what detection takes: it tells a hang, on a machine however busy.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestctl import GuestLost, Pool, PoolError
from guestctl.errors import GuestHung
from guestctl.image import Image
from guestctl.places import Places
from guestctl.qemu.accel import Acceleration
from guestctl.rundir import GuestDir
from guestctl.soak.leaks import left_of_pool
from guestctl.sockets import connected_socket
from guestctl.spec import GuestSpec
from guestctl.tree.dirt import dirt_of
from tests.fairness import Fair

LIMIT = 120.0
GUESTCTL = [sys.executable, "-m", "guestctl"]


@pytest.fixture(scope="module")
def ours(armv5l_image: Image, places: Places) -> Iterator[Pool]:
    with Pool("armv5l", 1, name=f"reliable-{os.getpid()}", places=places) as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes up to a minute takes seconds."""
    monkeypatch.setattr("guestctl.process._HUNG_LEAST", 1.0)
    monkeypatch.setattr("guestctl.process._KILL_GRACE", 2.0)
    monkeypatch.setattr("guestctl.leasing._GREETING", 2.0)


def folder_of(pool: Pool) -> GuestDir:
    return pool.guest_folder("g0")


def qemu(pool: Pool, number: signal.Signals) -> None:
    known = folder_of(pool).qemu()
    assert known is not None and known.send(number)


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def works(pool: Pool) -> None:
    """Whoever comes next has a guest, and none that is worse for it."""
    with pool.lease(LIMIT) as guest:
        assert guest.run(["echo", "fine"], timeout=60).check().stdout == b"fine\n"


def command(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GUESTCTL, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,  # type: ignore[call-overload]
    )


# --- QEMU and its supervisor ----------------------------------------------------------------


def test_a_guest_that_hangs_is_lost_within_the_idle_time_out(ours: Pool, impatient: None) -> None:
    with ours.lease(LIMIT) as guest:
        running = guest.start(["sleep", "1000"], idle_timeout=1.0)
        qemu(ours, signal.SIGSTOP)
        with Fair() as took, pytest.raises(GuestHung, match=r"nothing heard|did not end"):
            running.wait()
        assert took.seconds < 3
    works(ours)


def test_an_idle_guest_that_hangs_is_nobodys_harm(ours: Pool, impatient: None) -> None:
    works(ours)
    before = ours.status()[0]["qemu_pid"]
    qemu(ours, signal.SIGSTOP)
    works(ours)
    assert ours.status()[0]["qemu_pid"] != before


def test_a_pause_is_not_a_loss(ours: Pool) -> None:
    works(ours)
    before = ours.status()[0]["qemu_pid"]
    with ours.lease(LIMIT) as guest:
        running = guest.start(["sh", "-c", "sleep 0.5; echo over"], timeout=60, idle_timeout=30)
        qemu(ours, signal.SIGSTOP)
        time.sleep(1)
        qemu(ours, signal.SIGCONT)
        assert running.wait().stdout == b"over\n"
    assert ours.status()[0]["qemu_pid"] == before


def test_a_supervisor_killed_under_a_command(ours: Pool) -> None:
    with ours.lease(LIMIT) as guest:
        running = guest.start(["sleep", "1000"])
        supervisor = folder_of(ours).supervisor()
        assert supervisor is not None and supervisor.send(signal.SIGKILL)
        with Fair() as took, pytest.raises(GuestLost):
            running.wait()
        assert took.seconds < 5
    works(ours)


def test_an_earlier_guests_last_words_are_not_this_ones(ours: Pool) -> None:
    for script, cause in (("echo c >/proc/sysrq-trigger;", "panicked"), ("", "signal 9")):
        with ours.lease(LIMIT) as guest:
            running = guest.start(["sh", "-c", f"{script} echo up; sleep 1000"])
            if not script:
                qemu(ours, signal.SIGKILL)
            with pytest.raises(GuestLost, match=cause):
                running.wait()
    works(ours)


def test_a_dead_monitor_is_missed_by_nobody(armv5l_image: Image, places: Places) -> None:
    with Pool("armv5l", 1, places=places) as pool:
        held = connected_socket(folder_of(pool).monitor)
        with held, pool.lease(LIMIT) as guest:
            assert guest.run(["true"], timeout=60).status == 0
            begin = time.monotonic()
            pool.down()
            assert time.monotonic() - begin < LIMIT / 2
    assert not left_of_pool(places, pool.name)


BROKEN = {
    "a bad option": (Acceleration("tcg", "no-such-cpu"), "QEMU failed with status 1"),
    "no KVM": (Acceleration("kvm", "arm926"), "QEMU failed with status 1"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_qemu_that_does_not_start(
    armv5l_image: Image, own_places: Places, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    best, cause = BROKEN[what]
    monkeypatch.setattr("guestctl.plan.acceleration", lambda *_: best)
    with pytest.raises(GuestLost, match=cause):
        Pool("armv5l", 1, places=own_places)
    assert not list((own_places.runtime / "pools").iterdir())


def test_a_qemu_without_memory(armv5l_image: Image, own_places: Places) -> None:
    """Its address space is bounded so that the guest's memory does not fit."""
    done = command(
        *("run", "--arch", "armv5l", "--", "true"),
        env=environment(own_places),
        preexec_fn=functools.partial(limit, 0, 360 << 20),
    )
    assert done.returncode == 125, done
    assert "guestctl: guest g0 did not boot: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((own_places.runtime / "guestctl" / "pools").iterdir())


def limit(descriptors: int, memory: int = 0) -> None:
    import resource

    if descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def environment(own: Places) -> dict[str, str]:
    """Such that a command line uses a test's own folders."""
    caches = own.cache.parent / "caches"
    caches.mkdir()
    (caches / "guestctl").symlink_to(own.cache)
    return {**os.environ, "XDG_RUNTIME_DIR": str(own.runtime), "XDG_CACHE_HOME": str(caches)}


# --- the guest ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(armv5l_image: Image, places: Places) -> Iterator[Pool]:
    """A guest whose memory is soon used up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guestctl.plan.GuestSpec", functools.partial(GuestSpec, swap=0))
        with Pool("armv5l", 1, places=places, memory=64, cold=True) as made:
            yield made


def test_a_job_that_takes_all_memory_is_what_is_killed(small: Pool) -> None:
    script = "echo 1 >/proc/sys/vm/overcommit_memory; exec dd if=/dev/zero of=/dev/null bs=300M"
    with small.lease(LIMIT) as guest:
        bystander = guest.start(["sh", "-c", "read x; echo $x"], stdin=b"", timeout=60)
        result = guest.run(["sh", "-c", script], timeout=120)
        assert (result.outcome, result.status) == ("signalled", 137)
        assert bystander.wait().stdout == b"\n"
        assert guest.run(["true"], timeout=60).status == 0


def test_the_agent_is_never_what_is_killed_for_memory(small: Pool) -> None:
    """The kernel is told three times to kill whatever it likes best."""
    before = small.status()[0]["qemu_pid"]
    with small.lease(LIMIT) as guest:
        for _ in range(3):
            result = guest.run(
                ["sh", "-c", "echo f >/proc/sysrq-trigger; exec sleep 1000"], timeout=60
            )
            assert (result.outcome, result.status) == ("signalled", 137)
        assert guest.ping(30) < 30
    assert small.status()[0]["qemu_pid"] == before


class Nowhere:
    def write(self, data: bytes, /) -> None:
        return


def test_a_fork_bomb_ends_with_its_time_out(ours: Pool) -> None:
    with ours.lease(LIMIT) as guest:
        result = guest.run(
            ["sh", "-c", "b() { b | b & }; b; sleep 1000"], timeout=0.5, stderr=Nowhere()
        )
        assert (result.outcome, result.status) == ("timeout", 124)
        assert guest.run(["true"], timeout=60).status == 0


def test_a_full_scratch_disk_is_the_commands_error(ours: Pool) -> None:
    script = """
        fallocate -l 64G /tmp/all; dd if=/dev/zero of=/tmp/more bs=64k count=4096
        echo status $?; rm /tmp/all /tmp/more
    """
    with ours.lease(LIMIT) as guest:
        result = guest.run(["sh", "-c", script], timeout=120)
        assert result.stdout == b"status 1\n"
        assert b"No space left" in result.stderr
        assert guest.run(["sh", "-c", "echo x >/tmp/x"], timeout=60).status == 0


def test_a_command_that_cannot_die_costs_its_guest(ours: Pool, impatient: None) -> None:
    """Its file system is frozen, so that it waits for ever and no signal reaches it."""
    freeze = 'open F, "</tmp" or die; ioctl(F, 0xC0045877, 0) or die; open G, ">/tmp/x";'
    before = ours.status()[0]["qemu_pid"]
    hung = pytest.raises(GuestHung, match="did not end a killed command")
    with ours.lease(LIMIT) as guest, hung:
        guest.run(["perl", "-e", freeze], timeout=1.0)
    works(ours)
    assert ours.status()[0]["qemu_pid"] != before


def test_nothing_of_a_stubborn_command_keeps_the_share(ours: Pool) -> None:
    """It ignores signals, leaves a daemon, and both hold files of the share open."""
    script = """
        trap '' TERM INT HUP QUIT; exec 3>/work/held
        setsid sh -c 'exec 4>/work/daemons >/dev/null 2>&1; cd /work; sleep 1000' &
        sleep 1000
    """
    with ours.lease(LIMIT) as guest:
        with guest.mounted():
            assert guest.run(["sh", "-c", script], timeout=0.7).outcome == "timeout"
        assert not guest.work.dirt
        (guest.work.path / "held").unlink()


def test_a_guest_whose_clock_jumps_keeps_its_time_outs_and_gets_its_clock_back(ours: Pool) -> None:
    with ours.lease(LIMIT) as guest:
        begin = time.monotonic()
        for year in (1975, 2030):
            script = f"date -s {year}-01-01 >/dev/null; sleep 0.2; date +%Y"
            result = guest.run(["sh", "-c", script], timeout=600, idle_timeout=600)
            assert result.stdout == b"%d\n" % year
        assert guest.run(["sleep", "100"], timeout=0.5).outcome == "timeout"
        assert time.monotonic() - begin < LIMIT
    with ours.lease(LIMIT) as guest:
        now = float(guest.run(["date", "+%s"], timeout=60).check().stdout)
        assert abs(now - time.time()) < 30


def test_a_flooded_console_holds_nobody_up(ours: Pool) -> None:
    script = "i=0; while [ $i -lt 400 ]; do echo noise $i; i=$((i+1)); done >/dev/kmsg; echo done"
    with ours.lease(LIMIT) as guest:
        assert guest.run(["sh", "-c", script], timeout=60).stdout == b"done\n"
    assert folder_of(ours).console.stat().st_size < 2 << 20


# --- the share ------------------------------------------------------------------------------


def test_a_share_whose_guest_died_is_dirty_and_all_say_so(
    armv5l_image: Image, tmp_path: Path
) -> None:
    """The whole way by the command line: lost, kept, checked, run again, repaired."""
    run = ["run", "--arch", "armv5l", "--share", str(tmp_path)]
    panic = "echo half >file; echo c >/proc/sysrq-trigger; sleep 1000"
    lost = command(*run, "--keep-failed", "--", "sh", "-c", panic)
    assert lost.returncode == 125
    assert "kernel panicked" in lost.stderr and "console: " in lost.stderr
    assert f"the share {tmp_path} is marked as dirty" in lost.stderr
    assert "of pool kept-" in dirt_of(tmp_path)
    found = re.search(r"guestctl pool down --name (\S+)", lost.stderr)
    assert found, lost.stderr
    try:
        # What is kept of a lost guest is its console and its share; who enters gets another.
        again = command("run", "--name", found[1], "--", "cat", "/work/file")
        assert again.returncode == 0, again.stderr
        assert "is dirty: guest g0 of pool kept-" in again.stderr
    finally:
        down = command("pool", "down", "--name", found[1])
    assert down.returncode == 0
    checked = command("virtfs", "check", str(tmp_path))
    assert checked.returncode == 1
    assert "dirty (guest g0 of pool kept-" in checked.stdout
    collected = command("virtfs", "collect", str(tmp_path), str(tmp_path.parent / "out.tar"))
    assert "warning: guest g0 of pool kept-" in collected.stderr
    assert command("virtfs", "repair", str(tmp_path)).returncode == 0
    clean = command("virtfs", "check", str(tmp_path))
    assert (clean.returncode, clean.stdout) == (0, "")


NARROW = """
    set -e
    mkdir {tmp}/full {tmp}/shut
    mount -t tmpfs -o size=300k,mode=700 none {tmp}/full
    mount --bind -o ro {tmp}/shut {tmp}/shut
    mount -o remount,bind,ro {tmp}/shut
    set +e
    {run} --share {tmp}/full -- sh -c 'dd if=/dev/zero of=big bs=64k count=99; echo $?; rm big'
    echo full $?
    {run} --share {tmp}/shut -- true
    echo shut $?
    dd if=/dev/zero of={tmp}/full/fill bs=4k 2>/dev/null
    {run} --share {tmp}/full -- true
    echo unmarked $?
    mkdir -p {tmp}/cache/guestctl
    mount -t tmpfs -o size=100k,mode=700 none {tmp}/cache/guestctl
    ln -s {images} {tmp}/cache/guestctl/images
    dd if=/dev/zero of={tmp}/cache/guestctl/fill bs=4k 2>/dev/null
    XDG_CACHE_HOME={tmp}/cache {run} -- true
    echo cache $?
"""


def test_disks_that_are_full_or_shut(
    armv5l_image: Image, own_places: Places, places: Places, tmp_path: Path
) -> None:
    """In a namespace of the test's own: a full share, a read-only one, one without room for the
    mark, and a full cache."""
    run = f"{sys.executable} -m guestctl run --arch armv5l"
    script = NARROW.format(tmp=tmp_path, run=run, images=places.cache / "images")
    done = subprocess.run(
        ["unshare", "--user", "--map-current-user", "--keep-caps", "--mount", "sh", "-c", script],
        env=environment(own_places), capture_output=True, text=True, timeout=300, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.stdout.split() == [
        *("1", "full", "0", "shut", "125", "unmarked", "125", "cache", "125")
    ], done
    assert "No space left on device" in done.stderr
    assert "is not writable by this user" in done.stderr
    assert "cannot be marked as in use: No space left" in done.stderr
    assert "Traceback" not in done.stderr


# --- the host -------------------------------------------------------------------------------


@pytest.mark.parametrize("descriptors", [10, 24])
def test_too_few_descriptors_are_named(
    armv5l_image: Image, own_places: Places, descriptors: int
) -> None:
    done = command(
        *("run", "--arch", "armv5l", "--", "true"),
        env=environment(own_places),
        preexec_fn=functools.partial(limit, descriptors),
    )
    assert done.returncode == 0 or (
        done.returncode == 125 and "too many open files" in done.stderr.lower()
    ), done
    assert "Traceback" not in done.stderr
    pools = own_places.runtime / "guestctl" / "pools"
    assert not pools.exists() or not list(pools.iterdir())


HOLDER = """
import sys, time
from guestctl import Pool
guest = Pool.attach(sys.argv[1]).lease(60)
if sys.argv[2] == "mounted":
    guest._mounting.mount()
print("up", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("what", ["leased", "mounted"])
def test_a_controller_killed_with_a_lease_leaves_a_guest_as_it_was(ours: Pool, what: str) -> None:
    before = ours.status()[0]["qemu_pid"]
    argv = [sys.executable, "-c", HOLDER, ours.name, what]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"up\n"
        holder.kill()
    share = Path(ours.status()[0]["share"])
    # Until somebody has unmounted it, nobody knows what has reached it.
    assert bool(dirt_of(share)) == (what == "mounted")
    works(ours)
    assert not dirt_of(share)
    assert ours.status()[0]["qemu_pid"] == before


def test_a_pool_whose_controller_crashed_is_the_next_ones(
    armv5l_image: Image, places: Places
) -> None:
    """Leased, mounted and run in by a process that is gone; the next one takes all of it over."""
    name = f"crashed-{os.getpid()}"
    script = (
        "import os, sys\n"
        "from guestctl import Pool\n"
        f"pool = Pool('armv5l', 1, name={name!r})\n"
        "guest = pool.lease(60)\n"
        "guest._mounting.mount()\n"
        "guest.start(['sh', '-c', 'sleep 1; echo done >/work/file; echo over'])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    crashed = subprocess.run([sys.executable, "-c", script], timeout=120, check=False)
    assert crashed.returncode == -9
    pool = Pool.attach(name, places=places)
    try:
        with pool.adopt() as guest:
            assert guest.attach(stdin=None).wait().stdout == b"over\n"
            share = guest.work.path
        assert (share / "file").read_bytes() == b"done\n"
        assert not dirt_of(share)
        works(pool)
    finally:
        pool.down()
    assert not left_of_pool(places, name)


def test_a_pool_whose_controller_died_before_it_had_a_guest_says_so(
    armv5l_image: Image, places: Places
) -> None:
    name = f"unborn-{os.getpid()}"
    script = (
        "import os, guestctl.pool, guestctl.stock\n"
        "guestctl.stock.Stock._started = lambda *_: os.kill(os.getpid(), 9)\n"
        f"guestctl.pool.Pool('armv5l', 1, name={name!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=120, check=False).returncode == -9
    pool = Pool.attach(name, places=places)
    with pytest.raises(PoolError, match="has died"):
        pool.lease()
    with Pool("armv5l", 1, name=name, places=places) as anew:
        works(anew)
    assert not left_of_pool(places, name)


@pytest.mark.parametrize("delay", [0.0, 0.15])
def test_a_controller_killed_while_it_takes_a_pool_down(
    armv5l_image: Image, places: Places, delay: float
) -> None:
    name = f"falling-{os.getpid()}-{int(delay * 100)}"
    pool = Pool("armv5l", 1, name=name, places=places)
    argv = [sys.executable, "-c", f"from guestctl import Pool; Pool.attach({name!r}).down()"]
    with subprocess.Popen(argv) as process:
        ending = places.runtime / "pools" / name / "ending"
        until(lambda: ending.exists() or process.poll() is not None)
        time.sleep(delay)
        process.kill()
    with pytest.raises(PoolError, match="is down"):
        pool.lease(1)
    pool.down()
    assert not left_of_pool(places, name)
