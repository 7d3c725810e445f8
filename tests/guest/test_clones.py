"""Clones: guests that come out of a template are alike in nothing that must differ."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest

from guestctl import Guest, Pool
from guestctl.image import Image
from guestctl.places import Places
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


# --- templates that do not fit ----------------------------------------------------------------


def start(places: Places) -> tuple[str, str]:
    with Pool("armv5l", 1, places=places) as pool:
        (facts,) = pool.status()
        with pool.lease(30) as guest:
            guest.run(["true"], timeout=60).check()
        return facts["start"], facts["start_reason"]


def template(places: Places) -> Path:
    (facts,) = (places.cache / "templates").glob("*/template.json")
    return facts.parent


def test_a_template_that_was_changed_is_made_anew(armv5l_image: Image, own_places: Places) -> None:
    assert start(own_places) == ("clone", "")
    made = template(own_places)
    first = (made / "template.json").read_text()
    for name in ("ram", "state", "scratch"):
        (made / name).chmod(0o600)
        with open(made / name, "r+b") as file:
            file.truncate(4096)
        assert start(own_places) == ("clone", "")
        assert (made / "template.json").read_text() != first
    facts = json.loads((made / "template.json").read_text())
    (made / "template.json").write_text(json.dumps({**facts, "boot": "another"}))
    other = made.with_name("armv5l-of-another-image")
    other.mkdir()
    shutil.copy(made / "template.json", other)
    assert start(own_places) == ("clone", "")
    assert template(own_places) == made
    assert json.loads((made / "template.json").read_text())["boot"] != "another"


def test_another_qemu_gets_another_template(
    armv5l_image: Image, own_places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(own_places) == ("clone", "")
    (tmp_path / "qemu-system-arm").write_bytes(b"as after an upgrade")
    monkeypatch.setattr(
        "guestctl.template.qemu_program", lambda _t: str(tmp_path / "qemu-system-arm")
    )
    assert start(own_places) == ("clone", "")
    assert len(list((own_places.cache / "templates").glob("*/template.json"))) == 2


def spoil(made: Path) -> None:
    """Damage that no look at the files can find."""
    state = made / "state"
    data = state.read_bytes()
    state.chmod(0o600)
    state.write_bytes(data[:2000] + bytes(len(data) - 2000))
    facts = json.loads((made / "template.json").read_text())
    info = state.stat()
    facts["state"] = [info.st_ino, info.st_size, info.st_mtime_ns]
    (made / "template.json").write_text(json.dumps(facts))


def test_a_clone_that_does_not_come_boots(armv5l_image: Image, own_places: Places) -> None:
    assert start(own_places) == ("clone", "")
    made = template(own_places)
    spoil(made)
    way, reason = start(own_places)
    assert way == "cold"
    assert reason.startswith("a clone did not come: ")
    # It was good once: the next pool makes another.
    assert start(own_places) == ("clone", "")
    spoil(template(own_places))
    (made / "proven").unlink()
    assert start(own_places)[0] == "cold"
    # One that was never good is not tried again.
    way, again = start(own_places)
    assert (way, again) == ("cold", reason)
    assert not made.exists()


UP = (
    "import sys; from pathlib import Path; from guestctl import Pool; "
    "from guestctl.places import Places; places = Places(*map(Path, sys.argv[1:])); "
    "pool = Pool('armv5l', 1, places=places); print(pool.status()[0]['start']); pool.down()"
)


def up(places: Places) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", UP, *astuple(places)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE)


def test_two_at_once_make_one(armv5l_image: Image, own_places: Places) -> None:
    for process in [up(own_places) for _ in range(2)]:
        out, _ = process.communicate(timeout=120)
        assert out == b"clone\n"
    assert len(list((own_places.cache / "templates").glob("*/template.json"))) == 1


def test_killed_while_it_makes_one(armv5l_image: Image, own_places: Places) -> None:
    process = up(own_places)
    templates = own_places.cache / "templates"
    deadline = time.monotonic() + 60
    while not list(templates.glob(".*/console.log")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not list(templates.glob("*/template.json"))
    assert start(own_places) == ("clone", "")
    assert not list(templates.glob(".*/*"))
