"""Guests that die in every way: a clear error soon, never a success or a hang."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestctl import Guest, GuestLost, Pool, PoolError
from guestctl.image import Image
from guestctl.places import Places
from guestctl.processes import started_with
from tests.fairness import Fair, until

# Of seconds in which neither the guest nor we waited for a processor.
SOON = 5.0
# Far beyond what it takes, some tenths of a second: this tells a hang, on a machine however busy.
LIMIT = 60.0


@pytest.fixture
def doomed(armv5l_image: Image, places: Places) -> Iterator[Pool]:
    with Pool("armv5l", 1, places=places) as pool:
        yield pool


def kill_qemu(pool: Pool, _guest: Guest) -> None:
    os.kill(pool.status()[0]["qemu_pid"], signal.SIGKILL)


def crash_qemu(pool: Pool, _guest: Guest) -> None:
    os.kill(pool.status()[0]["qemu_pid"], signal.SIGSEGV)


def sysrq(letter: str) -> Callable[[Pool, Guest], None]:
    def pull(_pool: Pool, guest: Guest) -> None:
        guest.start(["sh", "-c", f"echo {letter} >/proc/sysrq-trigger"])

    return pull


FAULTS = {
    "qemu killed": (kill_qemu, "signal 9"),
    "qemu crashed": (crash_qemu, "signal 11"),
    "kernel panic": (sysrq("c"), "kernel panicked"),
    "agent killed": (sysrq("i"), "agent died"),
}


def watched(pool: Pool) -> Fair:
    """Measures how soon a guest's end is noticed."""
    folder = pool._dir.guests()[0]
    known = (folder.qemu(), folder.supervisor())
    return Fair(*(process.pid for process in known if process is not None))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_middle_of_a_command(doomed: Pool, fault: str) -> None:
    strike, cause = FAULTS[fault]
    with doomed.lease(timeout=LIMIT) as guest:
        process = guest.start(["sleep", "1000"])
        time.sleep(0.3)
        with watched(doomed) as fair:
            strike(doomed, guest)
            with pytest.raises(GuestLost) as caught:
                process.wait()
        assert fair.seconds < SOON
        assert cause in str(caught.value)
        with pytest.raises(GuestLost):
            guest.run(["true"])
    (facts,) = doomed.status()
    assert facts["state"] == "lost"
    with doomed.lease(timeout=1) as another:
        assert another.run(["true"]).status == 0
    begin = time.monotonic()
    doomed.down()
    assert time.monotonic() - begin < LIMIT


def test_an_idle_guest_that_dies_is_seen(doomed: Pool) -> None:
    with watched(doomed) as fair:
        kill_qemu(doomed, None)  # type: ignore[arg-type]
        until(lambda: doomed.status()[0]["state"] == "lost")
    assert fair.seconds < SOON


def test_a_supervisor_that_dies_takes_its_qemu_along(doomed: Pool) -> None:
    folder = doomed._dir.guests()[0]
    supervisor, qemu = folder.supervisor(), folder.qemu()
    assert supervisor is not None
    assert qemu is not None
    supervisor.send(signal.SIGKILL)
    assert qemu.wait(LIMIT)
    assert doomed.status()[0]["state"] == "lost"


def test_what_a_killed_supervisor_has_left_of_its_start_is_ended(doomed: Pool) -> None:
    """As if it had been killed before bubblewrap was bound to its life: nobody has the pid."""
    folder = doomed._dir.guests()[0]
    mark = f"GUESTCTL_GUEST={folder.path}"
    argv = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--clearenv"]
    argv += ["--setenv", *mark.split("=", 1), "sleep", "1000"]
    environment = {"PATH": os.environ["PATH"], "GUESTCTL_GUEST": str(folder.path)}
    with subprocess.Popen(argv, env=environment) as stray:
        until(lambda: any(_is_sleep(known.pid) for known in started_with(mark)))
        # bubblewrap, its first process and the program.
        left = started_with(mark)
        assert len(left) >= 3
        supervisor = folder.supervisor()
        assert supervisor is not None and supervisor.send(signal.SIGKILL)
        doomed.down()
        assert all(known.wait(LIMIT) for known in left)
        stray.wait(LIMIT)


def _is_sleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"


def test_run_says_lost_and_125(doomed: Pool, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    argv = [sys.executable, "-m", "guestctl", "run", "--name", doomed.name]
    argv += ["--result", str(result), "--", "sleep", "1000"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        until(lambda: doomed.status()[0]["job"])
        with watched(doomed) as fair:
            kill_qemu(doomed, None)  # type: ignore[arg-type]
            _, err = process.communicate(timeout=LIMIT)
        # Python's own end is in it, too.
        assert fair.seconds < SOON
    assert process.returncode == 125
    assert b"guestctl: guest g0 was lost" in err
    facts = json.loads(result.read_text())
    assert (facts["outcome"], facts["status"]) == ("lost", 125)


def test_a_holder_that_dies_frees_the_lease_but_not_before_its_job_is_gone(doomed: Pool) -> None:
    script = (
        "from guestctl import Pool; import sys, time\n"
        f"guest = Pool.attach({doomed.name!r}).lease(10)\n"
        "process = guest.start(['sleep', '1000'])\n"
        "print('up', flush=True); time.sleep(100)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"up\n"
    time.sleep(0.5)
    holder.kill()
    holder.communicate()
    with pytest.raises(PoolError, match="free"):
        doomed.lease(timeout=2)


def test_down_in_the_middle_of_a_command(doomed: Pool) -> None:
    with doomed.lease(timeout=LIMIT) as guest:
        process = guest.start(["sleep", "1000"])
        outcome: list[BaseException] = []

        def wait() -> None:
            try:
                process.wait()
            except GuestLost as error:
                outcome.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        doomed.down()
        waiter.join(LIMIT)
        assert outcome


def processes_of(name: str) -> list[str]:
    """The command lines that name a pool: supervisors by its run directory, QEMUs by its shares."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name in line:
            found.append(line)
    return found


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4])
def test_a_controller_killed_while_booting_leaves_a_pool_that_can_be_taken_down(
    armv5l_image: Image, places: Places, delay: float
) -> None:
    name = f"killed-{os.getpid()}-{int(delay * 1000)}"
    argv = [sys.executable, "-m", "guestctl", "pool", "up", "-n", "2", "--arch", "armv5l"]
    process = subprocess.Popen([*argv, "--name", name], stderr=subprocess.DEVNULL)
    until((places.runtime / "pools" / name / "g1" / "state.json").exists)
    time.sleep(delay)
    process.kill()
    process.wait()
    Pool.attach(name, places=places).down()
    assert not (places.runtime / "pools" / name).exists()
    until(lambda: not processes_of(name))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_run_that_is_killed_takes_its_guest_along(
    armv5l_image: Image, own_places: Places, number: signal.Signals
) -> None:
    env = {
        **os.environ,
        "XDG_RUNTIME_DIR": str(own_places.runtime),
        "XDG_CACHE_HOME": str(own_places.cache.parent / "caches"),
    }
    (own_places.cache.parent / "caches").mkdir()
    (own_places.cache.parent / "caches" / "guestctl").symlink_to(own_places.cache)
    argv = [sys.executable, "-m", "guestctl", "run", "--arch", "armv5l", "--", "sleep", "1000"]
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pools = own_places.runtime / "guestctl" / "pools"
    until(lambda: list(pools.glob("*/g0/jobs.json")))
    found = list(pools.glob("*/g0/jobs.json"))
    qemu = (
        Pool.attach(
            found[0].parent.parent.name,
            places=dataclasses.replace(own_places, runtime=pools.parent),
        )
        ._dir.guests()[0]
        .qemu()
    )
    assert qemu is not None
    process.send_signal(number)
    assert process.wait(LIMIT) == {2: 130, 15: 143, 1: 129, 9: -9}[number]
    assert qemu.wait(LIMIT)
    if number != signal.SIGKILL:
        assert list(pools.iterdir()) == []


def test_qemu_killed_while_it_boots(armv5l_image: Image, places: Places) -> None:
    name = f"boot-{os.getpid()}"
    state = places.runtime / "pools" / name / "g0" / "state.json"
    caught: list[GuestLost] = []

    def up() -> None:
        try:
            Pool("armv5l", 1, name=name, places=places, cold=True)
        except GuestLost as error:
            caught.append(error)

    thread = threading.Thread(target=up)
    thread.start()
    until(lambda: state.exists() and "qemu_pid" in state.read_text())
    os.kill(json.loads(state.read_text())["qemu_pid"], signal.SIGKILL)
    thread.join(LIMIT)
    assert "signal 9" in str(caught[0])
    assert not state.parent.parent.exists()


def test_a_kernel_that_finds_no_init(
    armv5l_image: Image, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "initramfs").write_bytes(b"nothing that unpacks")
    broken = dataclasses.replace(armv5l_image, initramfs=tmp_path / "initramfs")
    monkeypatch.setattr("guestctl.catalog.load", lambda arch, cache_dir: broken)
    with pytest.raises(GuestLost, match="kernel panicked") as caught:
        Pool("armv5l", 1, places=places)
    assert "Kernel panic" in caught.value.console


def test_a_boot_that_takes_too_long(armv5l_image: Image, places: Places) -> None:
    begin = time.monotonic()
    with pytest.raises(GuestLost, match="did not"):
        Pool("armv5l", 1, places=places, boot_timeout=0.1, cold=True)
    assert time.monotonic() - begin < LIMIT
