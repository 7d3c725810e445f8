"""Clones: guests that come out of a template are alike in nothing that must differ."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestctl import Guest, Pool
from guestctl.image import Image
from guestctl.invocation import PATH
from guestctl.offload.names import STUBS
from guestctl.places import Places
from guestctl.qemu import monitor
from guestctl.rundir import GuestDir
from tests.fairness import until

CLONES = 3

# Everything that a program may take for chance, each drawn anew; one line a source.
CHANCE = r"""
#include <stdio.h>
#include <sys/auxv.h>
#include <sys/random.h>
static void show(const char *name, const unsigned char *data, int size)
{
	printf("%s ", name);
	for (int i = 0; i < size; i++)
		printf("%02x", data[i]);
	printf("\n");
}
int main(void)
{
	unsigned char data[16];
	FILE *file = fopen("/dev/urandom", "r");

	show("AT_RANDOM", (const unsigned char *)getauxval(AT_RANDOM), 16);
	if (getrandom(data, 16, 0) == 16)
		show("getrandom", data, 16);
	if (file && fread(data, 16, 1, file) == 1)
		show("urandom", data, 16);
	return 0;
}
"""


@pytest.fixture(scope="module")
def clones(armv5l_image: Image, places: Places) -> Iterator[Pool]:
    with Pool("armv5l", CLONES, places=places) as pool:
        assert [guest["start"] for guest in pool.status()] == ["clone"] * CLONES
        yield pool


def leased(pool: Pool) -> list[Guest]:
    return [pool.lease(30) for _ in range(CLONES)]


def test_no_two_clones_draw_the_same(clones: Pool) -> None:
    guests = leased(clones)
    try:
        first = guests[0]
        first.run(
            ["sh", "-c", "cat >/tmp/c.c; gcc -o /tmp/c /tmp/c.c"], stdin=CHANCE.encode()
        ).check()
        program = first.run(["cat", "/tmp/c"]).check().stdout
        drawn: Counter[str] = Counter()
        for guest in guests:
            guest.run(["sh", "-c", "cat >/tmp/c; chmod 755 /tmp/c"], stdin=program).check()
            script = """
                for i in 1 2 3 4; do /tmp/c; done
                for i in 1 2 3 4; do echo uuid $(cat /proc/sys/kernel/random/uuid); done
                echo boot_id $(cat /proc/sys/kernel/random/boot_id)
                mktemp -u XXXXXXXXXXXXXXXX
            """
            result = guest.run(["bash", "-c", script], timeout=60).check()
            drawn.update(result.stdout.decode().splitlines())
        assert len(drawn) == CLONES * (4 * 3 + 4 + 1 + 1)
        assert set(drawn.values()) == {1}
    finally:
        for guest in guests:
            guest.release()


def test_each_clone_is_somebody(clones: Pool) -> None:
    names = set()
    for guest in leased(clones):
        with guest:
            before = time.time()
            asked = "hostname; date +%s.%N; df --output=fstype / | tail -1"
            result = guest.run(["sh", "-c", asked], timeout=60)
            name, now, root = result.check().stdout.decode().splitlines()
            assert before - 1 < float(now) < time.time() + 1
            assert root == "overlay"
            names.add(name)
    assert names == {guest["name"] for guest in clones.status()}


def test_clones_share_memory_that_none_can_change(clones: Pool) -> None:
    held = set()
    for folder in clones._dir.guests():
        state, supervisor = folder.state(), folder.supervisor()
        assert supervisor is not None
        path = f"/proc/{supervisor.pid}/fd/{state['memory_fd']}"
        held.add(os.stat(path).st_ino)
        memory = os.open(path, os.O_RDWR)
        try:
            assert fcntl.fcntl(memory, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
            with pytest.raises(PermissionError):
                os.pwrite(memory, b"x", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(memory, 0)
        finally:
            os.close(memory)
    assert len(held) == 1
    template = Path(clones._dir.guests()[0].spec()["template"])
    before = hashlib.sha256((template / "ram").read_bytes()).digest()
    with clones.lease(30) as guest:
        guest.run(["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=50"], timeout=60).check()
    assert hashlib.sha256((template / "ram").read_bytes()).digest() == before


def read_from_disks(folder: GuestDir) -> dict[str, int]:
    """How often a guest has read from each of its disks."""
    (disks,) = monitor.execute(folder.monitor, "query-blockstats")
    return {disk["node-name"]: disk["stats"]["rd_operations"] for disk in disks}


def test_the_first_command_has_all_it_needs_in_memory(armv5l_image: Image, places: Places) -> None:
    with Pool("armv5l", 1, places=places) as pool:
        (folder,) = pool._dir.guests()
        # As where the host compiles, whether it does here or not.
        path = {"PATH": f"{os.fsdecode(STUBS)}:{PATH}"}
        with pool.lease(60) as guest, guest.mounted():
            guest.run(["true"], env=path, timeout=60).check()
            assert read_from_disks(folder) == {"root": 0, "scratch": 0}
            guest.run(["perl", "-e", "1"], env=path, timeout=60).check()
            assert read_from_disks(folder)["root"] > 0


def states(pool: Pool) -> set[str]:
    """What guests are at, a spare that is being made counted as starting."""
    return {"starting" if "memory_fd" not in f.state() else "there" for f in pool._dir.guests()}


def test_a_fresh_guest_is_another_clone(armv5l_image: Image, places: Places) -> None:
    with Pool("armv5l", 2, places=places) as pool:
        boots = set()
        inodes = set()
        for _ in range(3):
            with pool.lease(60, fresh=True) as guest:
                boots.add(guest.run(["cat", "/proc/sys/kernel/random/boot_id"]).check().stdout)
                assert guest.run(["touch", "/etc/seen"]).check().status == 0
        assert len(boots) == 3
        deadline = time.monotonic() + 60
        while not (pool.spares()["ready"] and "starting" not in states(pool)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for folder in pool._dir.guests():
            supervisor = folder.supervisor()
            assert supervisor is not None
            inodes.add(os.stat(f"/proc/{supervisor.pid}/fd/{folder.state()['memory_fd']}").st_ino)
        assert {guest["start"] for guest in pool.status()} == {"clone"}
        # The new ones map what the old ones had.
        assert len(inodes) == 1


def test_the_console_of_a_clone_begins_before_it(clones: Pool) -> None:
    with clones.lease(30) as guest:
        guest.run(["sh", "-c", "echo here I am >/dev/console"], timeout=60).check()
        until(lambda: "here I am" in guest.console_tail())
        assert guest.console_tail().startswith("guestctl: init")


def test_cold_means_cold(armv5l_image: Image, own_places: Places) -> None:
    with Pool("armv5l", 1, places=own_places, cold=True) as pool:
        (facts,) = pool.status()
        assert (facts["start"], facts["start_reason"]) == ("cold", "--cold was given")
    assert not (own_places.cache / "templates").exists()
    with Pool("armv5l", 1, places=own_places, channel="tcp") as pool:
        (facts,) = pool.status()
        assert (facts["start"], facts["start_reason"]) == (
            "cold",
            "only a guest with a virtio channel and without a network is saved",
        )
