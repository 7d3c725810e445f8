"""What was found out about this host, and holds until what it depends on has changed.

CACHE/remembered.json has one entry a question: what its answer depends on, as a hash, and the
answer. It is there for speed alone: a damaged or missing file costs a few milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guestctl.errors import GuestctlError
from guestctl.rundir import read_json, write_json

__all__ = ["remembered", "stamp"]


def remembered(
    cache: Path,
    question: str,
    depends: object,
    find: Callable[[], Any],
    *,
    keep: Callable[[Any], bool] = lambda _answer: True,
) -> Any:
    """The answer, which JSON must be able to hold; `find` is asked where none is known that fits.

    One that `keep` does not want is asked for anew each time.
    """
    path = cache / "remembered.json"
    said = json.dumps(depends, default=str, sort_keys=True)
    known = _read(path).get(question)
    if isinstance(known, list) and len(known) == 2 and known[0] == said:
        return known[1]
    answer = find()
    if keep(answer):
        # Whoever loses an answer to another writer finds it again.
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
            write_json(path, {**_read(path), question: [said, answer]})
    return answer


def stamp(*paths: Path) -> list[Any]:
    """Changes when one of these files does, or a file directly in one of these folders."""
    found: list[Any] = []
    for path in paths:
        try:
            if path.is_dir():
                with os.scandir(path) as entries:
                    inside = [(entry.name, *_facts(entry.stat())) for entry in entries]
                found.append(sorted(inside))
            else:
                found.append(_facts(path.stat()))
        except OSError as error:
            found.append(error.errno)
    return found


def _facts(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (GuestctlError, OSError, ValueError):
        return {}
