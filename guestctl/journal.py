"""What happened in a pool: one line of JSON an event, appended by whoever makes it happen.

`events.jsonl` in the pool's run directory; when it is full it becomes `events.jsonl.1`, and what
was there before is gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guestctl.tail import Tail

__all__ = ["follow", "read", "record"]

LIMIT = 1 << 20
# Longer values, such as a command's arguments, are cut: a line must be written at once.
_VALUE = 400
_LOCK_TRIES = 20
_POLL = 0.1


def record(path: Path, event: str, **facts: Any) -> None:
    """Appends an event. A journal that cannot be written must not stop what it tells of."""
    line = json.dumps({"time": round(time.time(), 6), "event": event, **_short(facts)})
    try:
        handle = _opened(path)
    except OSError:
        return
    try:
        os.write(handle, line.encode() + b"\n")
    except OSError:
        return
    finally:
        os.close(handle)


def read(path: Path) -> list[dict[str, Any]]:
    """All events that are kept, oldest first."""
    found = []
    for part in (_older(path), path):
        try:
            text = part.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        found += [json.loads(line) for line in text.splitlines() if line]
    return found


def follow(path: Path) -> Iterator[dict[str, Any]]:
    """What `read` gives, then each event as it happens, until the pool's folder is gone."""
    yield from _lines_of(_older(path))
    rest = b""
    with Tail(path) as tail:
        while True:
            # Asked before reading: what was written before the end is read.
            alive = path.parent.exists()
            data = tail.read()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield json.loads(line)
            if not data:
                if not alive:
                    return
                time.sleep(_POLL)


def _older(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def _lines_of(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        yield json.loads(line)


def _replaced(path: Path, handle: int) -> bool:
    """Whether another file, or none, has the name now."""
    try:
        return path.stat().st_ino != os.fstat(handle).st_ino
    except FileNotFoundError:
        return True


def _short(facts: dict[str, Any]) -> dict[str, Any]:
    short = {}
    for name, value in facts.items():
        if isinstance(value, str) and len(value) > _VALUE:
            short[name] = value[:_VALUE] + "…"
        else:
            short[name] = value
    return short


def _opened(path: Path) -> int:
    """The journal, ready for one line; moved aside first where it is full.

    The lock keeps two processes from moving it both. Whoever cannot get it writes all the same: a
    line is one write, and the bound is not that strict.
    """
    for _ in range(_LOCK_TRIES):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            time.sleep(0.005)
            continue
        if _replaced(path, handle):
            os.close(handle)
            continue
        if os.fstat(handle).st_size < LIMIT:
            return handle
        os.replace(path, _older(path))
        os.close(handle)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
