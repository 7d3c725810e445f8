"""What is special about each channel. What holds on all of them is in the modules that mark their
tests `channels`.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from guestctl import Guest, Pool
from guestctl.agent import Agent
from guestctl.image import Image
from guestctl.places import Places
from guestctl.plan import PoolOptions, make_trees, plan_pool
from guestctl.qemu import monitor
from guestctl.qemu.machine import Machine, qemu_argv
from guestctl.qemu.spawn import scratch_disk
from guestctl.rundir import PoolDir
from guestctl.sockets import bound_socket, connected_socket
from tests.fairness import until


@pytest.mark.channels("tcp", "serial")
def test_a_stream_comes_back_as_it_went(guest: Guest, channel: str) -> None:
    """An emulated UART takes 16 bytes at a time: on a busy host that is some KB/s."""
    data = random.Random(2).randbytes({"serial": 40_000}.get(channel, 8_000_000))
    assert guest.run(["cat"], stdin=data, timeout=240).check().stdout == data


@pytest.mark.channels("tcp", "serial")
def test_commands_see_no_network_device(guest: Guest) -> None:
    listed = guest.run(["cat", "/proc/net/dev"], timeout=60).check().stdout.decode()
    assert [line.split(":")[0].strip() for line in listed.splitlines()[2:]] == ["lo"]


@pytest.mark.channels("tcp", "serial")
def test_nothing_of_it_listens_on_the_host(pool: Pool) -> None:
    """QEMU's own network namespace has no listening socket, and the host's has none of QEMU's."""
    pid = pool.status()[0]["qemu_pid"]
    listening = "0A"
    for table in ("tcp", "tcp6", "udp", "udp6"):
        with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
            states = [line.split()[3] for line in file.readlines()[1:]]
        assert listening not in states and "07" not in states


def test_a_caller_that_dies_leaves_an_orphan(armv5l_image: Image, places: Places) -> None:
    """The channel does not hang up: the next session is what tells the agent."""
    script = (
        "import sys, time; from guestctl import Pool;"
        "guest = Pool.attach(sys.argv[1]).lease(10);"
        "guest.start(['sleep', '1000']); print('started', flush=True); time.sleep(1000)"
    )
    with Pool("armv5l", 1, places=places, channel="tcp") as pool:
        argv = [sys.executable, "-c", script, pool.name]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as caller:
            assert caller.stdout is not None
            assert caller.stdout.readline() == b"started\n"
            os.kill(caller.pid, signal.SIGKILL)
        folder = PoolDir.named(places.runtime, pool.name).guests()[0]
        agent = Agent.connect(connected_socket(folder.agent), timeout=20, hangs_up=False)
        assert agent.welcome is not None and len(agent.welcome.jobs) == 1
        agent.close()


def processor_ticks(pid: int) -> int:
    """What all threads of a process have had so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


@pytest.mark.channels("tcp", "serial")
def test_a_caller_that_is_stopped_costs_nobody_anything(pool: Pool, places: Places) -> None:
    """It takes no more output, of which there is no end. QEMU runs on, and answers its monitor."""
    some = {"serial": 20_000}.get(pool.options.channel, 2_000_000)
    folder = PoolDir.named(places.runtime, pool.name).guests()[0]
    beat = "while :; do date +%s%N >/tmp/beat; sleep 0.05; done & cat /dev/zero"
    argv = [sys.executable, "-m", "guestctl", "run", "--name", pool.name, "--", "sh", "-c", beat]
    caller = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert caller.stdout is not None
        assert caller.stdout.read(some) == bytes(some)
        caller.send_signal(signal.SIGSTOP)
        qemu = int(pool.status()[0]["qemu_pid"])
        # All that may be under way comes to rest: what is left is a beat.
        for _ in range(3):
            time.sleep(0.3)
            begin = time.monotonic()
            (status,) = monitor.execute(folder.monitor, "query-status", timeout=30)
            assert status["running"]
            assert time.monotonic() - begin < 20
        before = processor_ticks(qemu)
        until(lambda: processor_ticks(qemu) > before)
        assert pool.status()[0]["state"] == "leased"
        # It goes on where it was.
        caller.send_signal(signal.SIGCONT)
        assert caller.stdout.read(some) == bytes(some)
        caller.send_signal(signal.SIGINT)
        caller.communicate(timeout=60)
        assert caller.returncode == 130
    finally:
        caller.kill()
        caller.communicate()


@pytest.fixture
def device(armv5l_image: Image, places: Places, tmp_path: Path) -> Iterator[str]:
    """A serial device of this host with a whole machine behind it: QEMU's UART as a terminal, and
    nobody of ours between."""
    plan = plan_pool(PoolOptions("armv5l", 1, channel="serial"), "device", places)
    make_trees(plan)
    (spec,) = plan.guests
    with ExitStack() as stack:
        console, theirs = (stack.enter_context(end) for end in socket.socketpair())
        monitoring = stack.enter_context(bound_socket(tmp_path / "monitor"))
        scratch = scratch_disk(Path(spec.scratch_folder), spec.scratch)
        stack.callback(os.close, scratch)
        numbers = {"console": theirs.fileno(), "monitor": monitoring.fileno(), "scratch": scratch}
        argv = qemu_argv(Machine.of(spec), {**numbers, "agent": -1})
        argv[argv.index("socket,id=agent,fd=-1")] = "pty,id=agent"
        qemu = subprocess.Popen(
            argv,
            pass_fds=list(numbers.values()),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(qemu.wait)
        stack.callback(qemu.kill)
        threading.Thread(target=drained, args=(console,), daemon=True).start()
        (devices,) = monitor.execute(tmp_path / "monitor", "query-chardev", timeout=60)
        names = {facts["label"]: facts["filename"] for facts in devices}
        yield names["agent"].removeprefix("pty:")


def drained(console: socket.socket) -> None:
    while console.recv(65536):
        pass


def test_a_whole_machine_behind_a_serial_device(device: str, places: Places) -> None:
    data = random.Random(3).randbytes(10_000)
    for _ in range(2):
        # The second pool finds a machine that has been prepared by the first.
        with Pool("armv5l", 1, places=places, channel=f"serial:{device}") as pool:
            for _ in range(2):
                with pool.lease(timeout=60) as machine:
                    assert machine.run(["uname", "-m"], timeout=60).stdout == b"armv5tejl\n"
                    got = machine.run(["sh", "-c", "cat; exit 4"], stdin=data, timeout=120)
                    assert (got.status, got.stdout) == (4, data)
            assert pool.status()[0]["state"] == "ready"
