"""A stream through a line that changes nothing: what comes is kept until somebody takes it,
however long that takes. guestctl.line is for lines that do.

So whoever is at the line's other end never waits for a client that does not read. That matters
where it is QEMU: of a network channel it would wait with all that it has, see
docs/decisions/0045-network-channel-through-the-supervisor.md.
"""

from __future__ import annotations

__all__ = ["LIMIT", "QUEUE", "Pipe"]

# A client that gives no more credit is owed at most what it has given: 256 KiB on each channel of
# 64 jobs and 256 service streams, 96 MiB.
LIMIT = 128 << 20
# What waits for the caller on either side, before the peer has to wait.
QUEUE = 1 << 16


class Pipe:
    """One end; times are in seconds."""

    def __init__(self) -> None:
        self._queue = bytearray()
        self._inbox = bytearray()

    @property
    def connected(self) -> bool:
        return True

    # --- the caller's side ------------------------------------------------------------------

    def room(self) -> int:
        """How many bytes `send` takes now."""
        return max(0, QUEUE - len(self._queue))

    def send(self, data: bytes) -> None:
        self._queue += data

    def take(self, most: int) -> bytes:
        """What has come, in order."""
        data = self.peek(most)
        del self._inbox[:most]
        return data

    def waiting(self) -> int:
        """How many bytes `take` has."""
        return len(self._inbox)

    def peek(self, most: int) -> bytes:
        """What `take` would give."""
        return bytes(self._inbox[:most])

    def forget(self) -> None:
        """Drops what waits to be sent and to be taken: the caller is another one from now on."""
        self._queue.clear()
        self._inbox.clear()

    # --- the line's side --------------------------------------------------------------------

    def feed(self, data: bytes, now: float) -> None:
        """Bytes from the line. Raises BufferError when more waits than any client can be owed."""
        self._inbox += data
        if len(self._inbox) > LIMIT:
            raise BufferError("what waits is not taken")

    def output(self, now: float) -> bytes:
        """What goes on the line now."""
        data = bytes(self._queue)
        self._queue.clear()
        return data

    def deadline(self) -> float | None:
        """When `output` has something to say even if nothing happens."""
        return None
