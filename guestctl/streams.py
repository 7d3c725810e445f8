"""Where a command's output goes and its input comes from, on the caller's side."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Capture", "Rest", "Sink", "Source"]

CAPTURE_LIMIT = 64 << 20


class Sink(Protocol):
    """Where output goes; anything with a binary `write`."""

    def write(self, data: bytes, /) -> object: ...


class Source(Protocol):
    """Where input comes from: `read` gives at most so many bytes, and none at the end."""

    def read(self, size: int, /) -> bytes: ...


class Capture:
    """Keeps the first `limit` bytes, and the fact that there were more."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = CAPTURE_LIMIT if limit is None else limit
        self._parts: list[bytes] = []
        self._size = 0
        self.truncated = False

    def write(self, data: bytes, /) -> None:
        kept = data[: max(0, self._limit - self._size)]
        self.truncated |= len(kept) < len(data)
        self._size += len(kept)
        if kept:
            self._parts.append(kept)

    def value(self) -> bytes:
        return b"".join(self._parts)


class Rest:
    """Hands on to `sink` what follows the first `known` bytes."""

    def __init__(self, sink: Sink, known: int) -> None:
        self._sink = sink
        self._known = known

    def write(self, data: bytes, /) -> None:
        new = data[self._known :]
        self._known = max(0, self._known - len(data))
        if new:
            self._sink.write(new)
