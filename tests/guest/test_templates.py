"""Templates: made once, made anew where they do not fit, missed by nobody who starts a guest."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

import pytest

from guestctl import PIPE, Pool
from guestctl.caches import collect
from guestctl.cloning import Origin
from guestctl.image import Image
from guestctl.places import Places
from guestctl.spec import GuestSpec
from guestctl.template import Template


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


def test_a_template_that_goes_while_a_guest_starts_is_not_missed(
    armv5l_image: Image, own_places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's clone did not come, and took the template along."""
    with Pool("armv5l", 1, places=own_places) as pool:
        with pool.lease(60) as guest:
            guest.run(["true"], timeout=60).check()
        origin = pool._stock._origin

        @contextmanager
        def vanishing(spec: GuestSpec) -> Iterator[Origin]:
            with origin(spec) as found:
                shutil.rmtree(found.template)
                yield found

        monkeypatch.setattr(pool._stock, "_origin", vanishing)
        with pool.lease(60, fresh=True) as guest:
            guest.run(["true"], timeout=60).check()
            assert guest.console_tail().startswith("guestctl: init")
            assert pool.status()[0]["start"] == "clone"


def test_guests_start_whenever_templates_go(armv5l_image: Image, own_places: Places) -> None:
    assert start(own_places) == ("clone", "")
    over = threading.Event()

    def remove() -> None:
        while not over.wait(0.03):
            for made in (own_places.cache / "templates").glob("*/template.json"):
                Template(made.parent).discard()

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for _ in range(2):
            for process in [up(own_places) for _ in range(2)]:
                out, _ = process.communicate(timeout=120)
                assert out in (b"clone\n", b"cold\n")
    finally:
        over.set()
        remover.join()
    assert start(own_places) == ("clone", "")


def test_a_memory_that_nobody_fills_is_no_templates_fault(
    armv5l_image: Image, own_places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was to fill it is killed, or finds no room for it."""
    assert start(own_places) == ("clone", "")

    def fill(_memory: int, _source: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("guestctl.cloning.fill", fill)
        assert start(own_places) == (
            "cold",
            "a clone did not come: its memory could not be copied",
        )
    assert start(own_places) == ("clone", "")


def test_clearing_the_cache_leaves_what_a_pool_needs(
    armv5l_image: Image, own_places: Places
) -> None:
    # Not the user's: all that no pool needs goes.
    images = own_places.cache / "images"
    images.unlink()
    images.mkdir()
    image = images / armv5l_image.directory.name
    shutil.copytree(armv5l_image.directory, image, copy_function=os.link)
    shutil.copytree(armv5l_image.directory, images / "armv5l-other", copy_function=os.link)

    def cleared() -> set[str]:
        return {item.name for item, _freed in collect(own_places, keep_days=0, max_size=0)}

    with Pool("armv5l", 1, name="kept", places=own_places, spares=0) as pool:
        used = template(own_places)
        shutil.copytree(used, used.with_name("armv5l-other"), copy_function=os.link)
        with pool.lease(60) as guest, guest.mounted():
            running = guest.start(["sh", "-c", "read line; echo $line >/work/said"], stdin=PIPE)
            assert cleared() >= {"armv5l-other"}
            assert [made.name for made in images.glob("[!.]*")] == [image.name]
            assert [made.name for made in used.parent.glob("*/")] == [used.name]
            running.feed(b"here\n")
            running.wait().check()
        assert (Path(os.fspath(guest.work)) / "said").read_bytes() == b"here\n"
        with pool.lease(60, fresh=True) as guest:
            guest.run(["true"], timeout=60).check()
        assert {facts["start"] for facts in pool.status()} == {"clone"}
    assert cleared() >= {image.name, used.name}
    assert not image.exists() and not used.exists()


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
