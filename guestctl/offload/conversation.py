"""One connection of a stub, as messages in both directions."""

from __future__ import annotations

from collections.abc import Iterator

from guestctl import events
from guestctl.agent import Agent, Job
from guestctl.errors import OffloadError
from guestctl.offload.messages import Decoder
from guestctl.wire import CREDIT_WINDOW

__all__ = ["Conversation"]

# Less than this is not credited: most calls are over before.
_MUCH = CREDIT_WINDOW // 4


class Conversation:
    """Reads from any one thread, and writes from any one; over when the guest's end closes."""

    def __init__(self, agent: Agent, stream: Job) -> None:
        self.caller = stream.caller
        self._agent = agent
        self._stream = stream
        self._decoder = Decoder()

    def messages(self) -> Iterator[tuple[bytes, bytes]]:
        """What the guest says, to its end; raises GuestLost, ProtocolError."""
        uncredited = 0
        while True:
            match self._agent.take(self._stream, None):
                case events.Output(data=data):
                    uncredited += len(data)
                    if uncredited >= _MUCH:
                        self._agent.consumed(self._stream, 0, uncredited)
                        uncredited = 0
                    yield from self._decoder.feed(data)
                case events.Ended() | events.StreamReset():
                    return

    def send(self, data: bytes) -> None:
        """Sends messages; raises GuestLost, or OffloadError when nobody takes them."""
        if not self._agent.write(self._stream, data, timeout=60.0):
            raise OffloadError("the caller has gone")

    def close(self) -> None:
        """Nothing more will be sent."""
        self._agent.end_stdin(self._stream)
