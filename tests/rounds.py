"""Lease, run, kill, again and again: what a pool must stand without anything being left."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from guestctl import GuestLost, Pool

__all__ = ["rounds"]


def _kill(pool: Pool, name: str, role: str) -> None:
    folder = pool.guest_folder(name)
    known = folder.qemu() if role == "qemu" else folder.supervisor()
    assert known is not None
    known.send(signal.SIGKILL)


def _round(pool: Pool, number: int) -> None:
    """A command that ends well, and one that is lost with its guest."""
    with pool.lease(300, fresh=number % 10 == 3) as guest:
        if number % 5 == 0:
            with guest.mounted():
                result = guest.run(["sh", "-c", f"echo {number} >round"], timeout=300)
            assert (guest.work.path / "round").read_text() == f"{number}\n"
        else:
            result = guest.run(["echo", str(number)], timeout=300)
            assert result.stdout == b"%d\n" % number
        assert result.status == 0
        process = guest.start(["sleep", "1000"])
        _kill(pool, guest.name, "supervisor" if number % 7 == 0 else "qemu")
        with pytest.raises(GuestLost):
            process.wait()


def rounds(pool: Pool, numbers: range, workers: int) -> None:
    """All rounds, shared out to so many threads; raises what the first of them to fail raised."""
    failed: list[BaseException] = []
    waiting = list(reversed(numbers))
    lock = threading.Lock()

    def work() -> None:
        try:
            while not failed:
                with lock:
                    if not waiting:
                        return
                    number = waiting.pop()
                _round(pool, number)
        except BaseException as error:
            failed.append(error)

    threads: list[Callable[[], None]] = [work] * workers
    started = [threading.Thread(target=one, name=f"round-{os.getpid()}") for one in threads]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if failed:
        raise failed[0]
