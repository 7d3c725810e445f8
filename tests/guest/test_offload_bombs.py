"""Compilations that never end, or take all there is: bounded on the host, killed with who has asked
for them, and nobody else's business."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from guestctl import Guest, GuestLost, Pool, image
from guestctl.offload import Entry, read_ledger
from guestctl.places import Places
from guestctl.toolchain import install
from guestctl.view import Limits, View
from tests.fairness import until

from .conftest import ARCH
from .shells import settle, sh

# A source that a compiler reads for very long.
BOMB = 'cd /work; echo \'#include "x.h"\n#include "x.h"\' >x.h; cp x.h x.c'


def test_a_killed_caller_takes_its_compiler_along(
    offload_guest: Guest, calls: Callable[[], list[Entry]]
) -> None:
    guest = offload_guest
    before = len(calls())
    name = f"killed{os.getpid()}.c"
    guest.run(["sh", "-c", f"{BOMB}; cp x.c {name}"], timeout=60).check()
    offload = guest.offload
    assert offload is not None
    process = guest.start(["gcc", "-c", name], cwd="/work")
    until(lambda: compiling(name))
    process.cancel()
    assert process.wait().outcome == "signalled"
    (entry,) = calls()[before:]
    assert not offload.busy
    assert entry.reason == "the caller has gone"
    assert not compiling(name)
    until(lambda: offload.slots.free() == offload.slots.count)


def compiling(word: str) -> list[str]:
    """The programs of this host that have a word among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if word.encode() in words:
            found.append(os.fsdecode(words[0]))
    return found


def test_a_killed_guest_takes_its_compilers_along(
    armv5l_image: image.Image, places: Places
) -> None:
    """Those that run, and those that wait for a slot."""
    install(ARCH, cache_dir=places.cache)
    name = f"bomb{os.getpid()}.c"
    with Pool(ARCH, 1, places=places) as pool, pool.lease(timeout=60) as guest:
        offload = guest.offload
        assert offload is not None
        with pytest.raises(GuestLost), guest.mounted():
            sh(guest, f"{BOMB}; cp x.c {name}")
            calls = f"gcc -c {name} & " * (2 * offload.slots.count)
            process = guest.start(["sh", "-c", f"cd /work; {calls} wait"])
            until(lambda: any("cc1" in program for program in compiling(name)))
            guest.kill()
            process.wait()
        until(lambda: not compiling(name))
        until(lambda: not offload.busy)
        until(lambda: offload.slots.free() == offload.slots.count)


# What each of the bombs takes: for each of these there is a limit, here a small one.
LIMITS = Limits(seconds=3, memory=512 << 20, written=256 << 20)
BOMBS = {
    "time": ("gcc -c x.c", "the host's tool: timeout"),
    "memory": (
        r"printf '.rept 400000000\n.long 1\n.endr\n' >m.s; gcc -c m.s",
        "only the guest can judge: the host's memory",
    ),
    "space": (
        "echo 'char x[400 << 20] = { 1 };' >s.c; gcc -c s.c",
        "only the guest can judge: the host's compiler broke down",
    ),
}


def test_bombs_are_bounded_and_others_go_on(
    armv5l_image: image.Image, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the host gives up runs in the guest, and ends when its command does; so many more bombs
    than slots are no more processes than slots; and another guest's calls are made meanwhile."""
    install(ARCH, cache_dir=places.cache)
    name = f"many{os.getpid()}.c"
    with (
        Pool(ARCH, 2, places=places) as pool,
        pool.lease(timeout=60) as bomber,
        pool.lease(timeout=60) as other,
    ):
        offload = bomber.offload
        assert offload is not None
        assert other.offload is not None
        slots, ledger = offload.slots, offload.ledger
        many = slots.count + 1
        each = [f"({command}) & " for command, _ in BOMBS.values()] + [f"gcc -c {name} & "] * many
        with other.mounted():
            sh(other, "cd /work; echo 'int x;' >x.c; gcc -c x.c; rm x.o")
        # From here on; the other guest has its view, with the usual limits.
        monkeypatch.setattr("guestctl.offload.tools.View", partial(View, limits=LIMITS))
        with bomber.mounted():
            process = bomber.start(["sh", "-c", f"{BOMB}; cp x.c {name}; {''.join(each)} wait"])
            most = 0

            def running() -> int:
                nonlocal most
                tools = [program for program in compiling(name) if "cc1" in program]
                most = max(most, len(tools))
                return len(tools)

            until(running)
            with other.mounted():
                sh(other, "cd /work; gcc -c x.c; test -s x.o")
                settle(other)
            (entry,) = read_ledger(other.offload.ledger.path)[-1:]
            assert (entry.guest, entry.where) == (other.name, "offload")

            def given_up() -> bool:
                running()
                return ledger.tally(process.id)["guest"] == len(each)

            until(given_up)
            process.cancel()
            assert process.wait().outcome == "signalled"
            settle(bomber)
            assert 0 < most <= slots.count
            assert not compiling(name)
            until(lambda: slots.free() == slots.count)
            # It is a guest like any other then.
            sh(bomber, "cd /work; echo 'int x;' >y.c; gcc -c y.c; test -s y.o")
            settle(bomber)
        made = [entry for entry in read_ledger(ledger.path) if entry.guest == bomber.name]
    assert made[-1].where == "offload"
    found = {entry.argv[-1]: entry.reason for entry in made[:-1]}
    timed_out = BOMBS["time"][1]
    assert found == {
        "x.c": timed_out,
        name: timed_out,
        "m.s": BOMBS["memory"][1],
        "s.c": BOMBS["space"][1],
    }
