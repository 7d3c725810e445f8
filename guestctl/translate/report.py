"""What translating tells: progress while it goes on, and warnings that are bounded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from guestctl.entry import clean_path
from guestctl.errors import TreeError, UsageError, one_line

__all__ = ["Path", "Progress", "Warnings", "clean_subdir", "told"]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Progress = Callable[[int, int], None]  # entries and bytes so far

_WARNINGS = 1000  # more are counted, not kept


@dataclass
class Warnings:
    """A bounded list of one-line warnings, each naming its entry."""

    lines: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, line: str) -> None:
        if len(self.lines) < _WARNINGS:
            self.lines.append(one_line(line))
        else:
            self.more += 1

    def all(self) -> tuple[str, ...]:
        tail = [f"and {self.more} more warnings"] if self.more else []
        return (*self.lines, *tail)


def clean_subdir(into: Path | None) -> bytes:
    """Normalises a path in a tree; an absolute one counts from the tree's root."""
    raw = b"" if into is None else os.fsencode(into).strip(b"/")
    try:
        return clean_path(raw) if raw else b""
    except ValueError as error:
        raise UsageError(f"{os.fsdecode(raw)}: {error}") from None


@contextlib.contextmanager
def told(tree: Path) -> Iterator[None]:
    """What the system refuses within becomes a TreeError that names the tree."""
    try:
        yield
    except BrokenPipeError:
        raise  # of the archive's reader, who has had enough
    except OSError as error:
        raise TreeError(f"{os.fsdecode(tree)}: {error.strerror or error}") from error
