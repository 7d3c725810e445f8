"""The suite's tests of commands, over the other channels; and what is special about each.

Here it is a part of them. `GUESTCTL_TEST_CHANNEL=tcp make test` has every guest of the suite use
that channel.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from guestctl import Guest, Pool
from guestctl.agent import Agent
from guestctl.image import Image
from guestctl.places import Places
from guestctl.rundir import PoolDir, connected_socket
from tests.guest.test_commands import (  # noqa: F401
    test_a_missing_working_directory_is_named,
    test_a_signal_is_told_from_a_status,
    test_environment_is_small_and_as_given,
    test_it_is_what_it_says,
    test_statuses,
    test_streams_are_apart_and_live,
    test_two_thousand_arguments_of_any_bytes,
    test_what_cannot_be_executed,
)

# MiB that take seconds.
SIZES = {"tcp": 20, "serial": 0.2}


@pytest.fixture(scope="module", params=sorted(SIZES))
def other(request: pytest.FixtureRequest, armv5l_image: Image, places: Places) -> Iterator[Pool]:
    with Pool("armv5l", 1, places=places, channel=request.param) as made:
        yield made


@pytest.fixture
def guest(other: Pool) -> Iterator[Guest]:
    with other.lease(timeout=30) as leased:
        yield leased


def test_a_stream_comes_back_as_it_went(other: Pool, guest: Guest) -> None:
    data = random.Random(2).randbytes(int(SIZES[other.options.channel] * (1 << 20)))
    assert guest.run(["cat"], stdin=data, timeout=240).check().stdout == data


def test_commands_see_no_network_device(guest: Guest) -> None:
    listed = guest.run(["cat", "/proc/net/dev"], timeout=60).check().stdout.decode()
    assert [line.split(":")[0].strip() for line in listed.splitlines()[2:]] == ["lo"]


def test_nothing_of_it_listens_on_the_host(other: Pool) -> None:
    """QEMU's own network namespace has no listening socket, and the host's has none of QEMU's."""
    pid = other.status()[0]["qemu_pid"]
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
