"""A stream through a line that changes nothing, used as guestctl.line is: what comes is kept until
somebody takes it, however long that takes.

So whoever is at the line's other end never waits for a client that does not read. That matters
where it is QEMU: of a network channel it would wait with all that it has, see
docs/decisions/0045-network-channel-through-the-supervisor.md.
"""

from __future__ import annotations

__all__ = ["LIMIT", "Pipe"]

# A client that gives no more credit is owed at most what it has given: 256 KiB on each channel of
# 64 jobs and 256 service streams, 96 MiB.
LIMIT = 128 << 20
_QUEUE = 1 << 16


class Pipe:
    """One end; see guestctl.line.Line for what each method is for."""

    connected = True

    def __init__(self) -> None:
        self._queue = bytearray()
        self._inbox = bytearray()

    def room(self) -> int:
        return max(0, _QUEUE - len(self._queue))

    def send(self, data: bytes) -> None:
        self._queue += data

    def take(self, most: int) -> bytes:
        data = self.peek(most)
        del self._inbox[:most]
        return data

    def waiting(self) -> int:
        return len(self._inbox)

    def peek(self, most: int) -> bytes:
        return bytes(self._inbox[:most])

    def forget(self) -> None:
        self._queue.clear()
        self._inbox.clear()

    def feed(self, data: bytes, _now: float) -> None:
        """Raises BufferError when more waits than any client can be owed."""
        self._inbox += data
        if len(self._inbox) > LIMIT:
            raise BufferError("what waits is not taken")

    def output(self, _now: float) -> bytes:
        data = bytes(self._queue)
        self._queue.clear()
        return data

    def deadline(self) -> float | None:
        return None
