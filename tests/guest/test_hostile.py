"""A guest whose agent means harm is ended; the pool's other guests do not notice."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from guestctl import GuestLost, Pool
from guestctl.image import Image
from guestctl.places import Places
from guestctl.rundir import GuestDir, PoolDir
from guestctl.sockets import bound_socket
from tests.agent import client as wire
from tests.agent.client import frame, record
from tests.agent.hostile import Hostile, Script


def possess(folder: GuestDir, script: Script, *, at_once: bool, jobs: bytes = b"") -> None:
    """From now on a hostile agent answers at the guest's socket."""
    folder.agent.rename(folder.path / "agent.real")
    listening = bound_socket(folder.agent)

    def serve() -> None:
        with listening:
            Hostile(listening.accept()[0], script, at_once=at_once, jobs=jobs)

    threading.Thread(target=serve, daemon=True).start()


def says(data: bytes) -> Callable[[socket.socket], None]:
    def script(connection: socket.socket) -> None:
        connection.sendall(data)
        threading.Event().wait(60)

    return script


def lost(pool: Pool, name: str) -> str:
    """The cause, once the guest is lost."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        facts = {guest["name"]: guest for guest in pool.status()}[name]
        if facts["state"] == "lost":
            return str(facts["cause"])
        time.sleep(0.05)
    raise AssertionError("the guest is still there")


def test_it_costs_its_own_guest_and_nothing_else(
    armv5l_image: Image, places: Places, tmp_path: Path
) -> None:
    with Pool("armv5l", 2, places=places) as pool:
        first, second = PoolDir.named(places.runtime, pool.name).guests()
        # One breaks the protocol under a command, which is told so; the other one works on.
        false_exit = frame(wire.STARTED, 1, bytes(20)) + frame(wire.EXIT, 2, bytes(72))
        possess(first, says(false_exit), at_once=False)
        with pool.lease(timeout=30) as bad, pool.lease(timeout=30) as good:
            assert (bad.name, good.name) == (first.name, second.name)
            running = good.start(["sh", "-c", "read line; echo $line"], stdin=b"fine\n")
            with pytest.raises(GuestLost, match="broke the protocol"):
                bad.run(["true"], timeout=60)
            assert running.wait().stdout == b"fine\n"
        assert "broke the protocol" in lost(pool, first.name)
        # It is not leased again, and nobody is told of it who asks for another.
        for _ in range(3):
            with pool.lease(timeout=30) as guest:
                assert guest.name == second.name
                assert guest.run(["true"], timeout=60).status == 0
        # The other breaks it in the greeting: then there is a new one for whoever asks next.
        pids = {guest["qemu_pid"] for guest in pool.status()}
        possess(second, says(b""), at_once=True, jobs=record(wire.JOB, b"\xff\xff\xff\xff"))
        with pool.lease(timeout=60) as guest:
            assert guest.run(["true"], timeout=60).status == 0
            facts = {facts["name"]: facts for facts in pool.status()}[guest.name]
            assert facts["qemu_pid"] not in pids
