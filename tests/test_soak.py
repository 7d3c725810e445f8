"""What a soak counts, without a guest: its report, its tables, and what it takes for a leak."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from guestctl.errors import GuestLost
from guestctl.places import Places
from guestctl.processes import ProcessId
from guestctl.soak import Report
from guestctl.soak.errands import ERRANDS, Wrong
from guestctl.soak.leaks import left_of_pool
from guestctl.soak.mischief import MISCHIEF
from guestctl.sockets import bound_socket
from guestctl.spec import Result
from tests.fairness import until


def test_a_report_adds_up() -> None:
    report = Report(seed=7, guests=2, seconds=10.0)
    for number in range(1, 101):
        report.timed(report.leases, number / 100)
        report.done("streams" if number % 2 else "files in the share")
    report.lost_guest("its kernel panicked")
    facts = report.as_json()
    assert (facts["jobs"], facts["jobs_per_second"]) == (100, 10.0)
    assert (facts["lease_p50"], facts["lease_p99"], facts["run_p99"]) == (0.51, 1.0, 0.0)
    assert facts["kinds"] == {"streams": 50, "files in the share": 50}
    assert facts["guests_lost"] == 1
    assert report.good
    report.false.append("job 3")
    assert not report.good


class Guest:
    """Says whatever it is told to."""

    def __init__(self, **said: object) -> None:
        self.said = said

    def run(self, argv: list[str], **_options: object) -> Result:
        facts = {"argv": tuple(map(os.fsencode, argv)), "outcome": "exited", "status": 0}
        return Result(**{**facts, **self.said})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "said",
    [{}, {"status": 1}, {"outcome": "signalled"}, {"stdout": b"something"}],
    ids=["nothing", "status", "outcome", "output"],
)
def test_a_false_success_is_seen(said: dict[str, object]) -> None:
    with pytest.raises(Wrong):
        ERRANDS["streams"].work(Guest(**said), random.Random(1))  # type: ignore[arg-type]


def test_a_loss_is_no_lie() -> None:
    class Dying(Guest):
        def run(self, argv: list[str], **_options: object) -> Result:
            raise GuestLost("gone")

    for name in ("streams", "kernel panic"):
        with pytest.raises(GuestLost):
            ERRANDS[name].work(Dying(), random.Random(1))  # type: ignore[arg-type]


def test_everything_has_its_weight() -> None:
    assert all(errand.weight > 0 for errand in ERRANDS.values())
    assert all(weight > 0 for _strike, weight in MISCHIEF.values())
    assert {name for name, errand in ERRANDS.items() if errand.fatal} == {
        "kernel panic",
        "agent killed",
    }


def test_a_pause_wakes_nobody_who_was_stopped_for_good() -> None:
    class Folder:
        def qemu(self) -> ProcessId:
            return known

    stop, pause = (MISCHIEF[what][0] for what in ("QEMU stopped", "QEMU paused"))
    with subprocess.Popen(["sleep", "1000"]) as process:
        known = ProcessId.of(process.pid)
        try:
            pause(Folder(), random.Random(1))  # type: ignore[arg-type]
            until(lambda: not known.stopped())
            stop(Folder(), random.Random(1))  # type: ignore[arg-type]
            until(known.stopped)
            pause(Folder(), random.Random(1))  # type: ignore[arg-type]
            assert known.stopped()
        finally:
            process.kill()


def test_what_a_pool_leaves_is_found(tmp_path: Path) -> None:
    places = Places(*(tmp_path / name for name in ("cache", "run", "config", "data")))
    name = f"leaky-{os.getpid()}"
    assert not left_of_pool(places, name)
    folder = places.runtime / "pools" / name
    folder.mkdir(parents=True)
    (places.cache / "shares" / name).mkdir(parents=True)
    argv = [sys.executable, "-c", "input()", f"/x/{name}/g0"]
    with (
        bound_socket(folder / "agent"),
        subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) as process,
    ):
        # A process that has just begun to be another program has no arguments for a moment.
        until(lambda: f"process {process.pid}" in left_of_pool(places, name))
        left = left_of_pool(places, name)
        process.communicate("\n")
    assert {str(folder), str(places.cache / "shares" / name)} < set(left)


COUNTED = """
import socket
from guestctl.soak.leaks import held_by_us
before = held_by_us()
ours, theirs = socket.socketpair()
with ours, theirs:
    assert held_by_us().descriptors == before.descriptors + 2
assert held_by_us().descriptors == before.descriptors
assert before.threads == 1 and before.memory > 1000
"""


def test_what_we_hold_is_counted() -> None:
    """In a process of its own: what others have left here may end meanwhile."""
    subprocess.run([sys.executable, "-c", COUNTED], timeout=60, check=True)
