"""Stages and collects again and again, for as long as strace makes system calls fail.

    python -m tests.faulty PLACE TURNS SOCKET

Turn N makes PLACE/N/tree of PLACE/source.tar and PLACE/N/out.KIND of PLACE/good. What came of it is
sent to SOCKET, a descriptor: one JSON object a turn, with "" for what was done.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from guestctl.errors import GuestctlError
from guestctl.translate import collect, stage

__all__ = ["KINDS"]

KINDS = ("tar", "tar.gz", "tar.zst")


def outcome(work: Callable[[], object]) -> str:
    try:
        work()
    except GuestctlError as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:
        return f"BARE {error!r}"
    return ""


def turn(place: Path, number: int) -> dict[str, str]:
    here = place / str(number)
    out = here / f"out.{KINDS[number % len(KINDS)]}"
    return {
        "stage": outcome(lambda: stage(place / "source.tar", here / "tree")),
        "collect": outcome(lambda: collect(place / "good", out)),
    }


def main() -> None:
    place, turns = Path(sys.argv[1]), int(sys.argv[2])
    report = socket.socket(fileno=int(sys.argv[3]))
    for number in range(turns, turns + len(KINDS)):  # so that all that is imported is there
        (place / str(number)).mkdir()
        turn(place, number)
    for number in range(turns):
        (place / str(number)).mkdir()
    report.send(b"%d\n" % os.getpid())
    report.recv(1)
    for number in range(turns):
        report.send(json.dumps(turn(place, number)).encode() + b"\n")
    report.recv(1)


if __name__ == "__main__":
    main()
