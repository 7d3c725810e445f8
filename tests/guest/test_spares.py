"""Spares: the next fresh lease finds a guest ready, whoever starts it and however that ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestctl import Pool, UsageError
from guestctl.image import Image
from guestctl.places import Places
from guestctl.rundir import flocked
from guestctl.spares import main as make_spares
from guestctl.spares import ready_spares

DEADLINE = 120.0


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def settled(pool: Pool) -> bool:
    """Whether a spare is ready, and whoever has made it has gone."""
    handle = flocked(pool._dir.path / "spares")
    if handle is None:
        return False
    os.close(handle)
    return pool.spares()["ready"] > 0


@pytest.fixture
def pool(armv5l_image: Image, places: Places) -> Iterator[Pool]:
    with Pool("armv5l", 1, name=f"spares-{os.getpid()}", places=places) as made:
        yield made


def test_each_fresh_lease_gets_a_spare_and_starts_the_next(pool: Pool) -> None:
    assert pool.spares() == {"wanted": 1, "ready": 1}
    seen, boots = [], set()
    for number in range(4):
        with pool.lease(DEADLINE, fresh=True) as guest:
            seen.append(guest.name)
            boots.add(guest.run(["cat", "/proc/sys/kernel/random/boot_id"]).check().stdout)
            assert guest.run(["test", "-e", "/etc/was-here"]).status == 1
            assert not any(Path(os.fspath(guest.work)).iterdir())
            guest.run(["touch", "/etc/was-here"]).check()
            (Path(os.fspath(guest.work)) / "left").touch()
            assert [each["state"] for each in pool.status()].count("leased") >= 1
        until(lambda: settled(pool))
        assert len(pool.status()) == 2, number
    assert len(boots) == 4
    assert set(seen) == {"g0", "g1"}
    # A spare was there each time: whoever waited for one would have replaced a guest himself.
    events = [json.loads(line) for line in pool.journal.read_text().splitlines()]
    assert [each["event"] for each in events].count("spare") == 4
    pids = [guest["qemu_pid"] for guest in pool.status()]
    pool.down()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_there_are_no_more_leases_than_guests(pool: Pool) -> None:
    with pool.lease(DEADLINE, fresh=True):
        until(lambda: settled(pool))
        with pytest.raises(Exception, match="free"):
            pool.lease(0.2)
        with pytest.raises(Exception, match="free"):
            pool.lease(0.2, fresh=True)
    # Who does not ask for a fresh one leaves the spare alone.
    with pool.lease(DEADLINE):
        assert pool.spares()["ready"] == 1


def test_the_one_who_makes_a_spare_is_killed(pool: Pool) -> None:
    """At any moment: the next fresh lease finds a guest all the same, and makes the spare good."""
    argv = [sys.executable, "-c", "import sys; from guestctl.spares import main; main(sys.argv[1])"]
    for delay in (0.05, 0.15, 0.3, 0.6):
        with pool.lease(DEADLINE, fresh=True):
            until(lambda: settled(pool))
        # No spare is left, and nobody makes one but us.
        for folder in ready_spares(pool._dir):
            folder.used.write_text("fresh")
        maker = subprocess.Popen([*argv, str(pool._dir.path)])
        time.sleep(delay)
        maker.send_signal(signal.SIGKILL)
        maker.wait(DEADLINE)
    with pool.lease(DEADLINE, fresh=True) as guest:
        guest.run(["true"]).check()
        until(lambda: settled(pool))
    assert len(pool.status()) == 2


def test_a_pool_goes_down_while_a_spare_is_made(pool: Pool, places: Places) -> None:
    with pool.lease(DEADLINE, fresh=True):
        pass
    pool.down()
    assert not pool._dir.path.exists()
    assert not (places.cache / "shares" / pool.name).exists()
    make_spares(str(pool._dir.path))
    assert not pool._dir.path.exists()


def test_as_many_as_were_asked_for(armv5l_image: Image, places: Places, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="spares"):
        Pool("armv5l", 1, places=places, spares=-1)
    parent = tmp_path / "trees"
    parent.mkdir()
    options = {"places": places, "share": parent}
    with Pool("armv5l", 1, **options) as pool, pool.lease(DEADLINE, fresh=True):
        assert pool.spares()["wanted"] == 0
        assert len(pool.status()) == 1
    with Pool("armv5l", 1, spares=2, **options) as pool:
        until(lambda: pool.spares()["ready"] == 2)
        with pool.lease(DEADLINE, fresh=True):
            until(lambda: pool.spares()["ready"] == 2)
            assert sorted(path.name for path in parent.iterdir()) == ["g0", "g1", "g2"]
            assert [guest["fresh"] for guest in pool.status()].count(True) == 2
