"""The rules of one job or service stream: which frame may come when, and how many bytes either side
may send. docs/protocol.md, "Jobs" and "Flow control"."""

from __future__ import annotations

from guestctl.errors import ProtocolError
from guestctl.wire import CREDIT_WINDOW, Type

__all__ = ["Flow"]

# Which frame the agent may send for a job in which state, and what state follows.
_TRANSITIONS = {
    ("described", Type.STARTED): "running",
    ("described", Type.FAILED): "gone",
    ("running", Type.DATA): "running",
    ("running", Type.EOF): "running",
    ("running", Type.CREDIT): "running",
    ("running", Type.EXIT): "gone",
    ("service", Type.DATA): "service",
    ("service", Type.EOF): "service",
    ("service", Type.CREDIT): "service",
    ("service", Type.RESET): "gone",
}


class Flow:
    """`state` is that of _TRANSITIONS, `channels` are those on which the agent may send."""

    def __init__(self, state: str, channels: tuple[int, ...]) -> None:
        self.state = state
        self.stdin_open = True
        self._send_credit = CREDIT_WINDOW
        self._may_receive = dict.fromkeys(channels, CREDIT_WINDOW)

    @classmethod
    def of_job(cls) -> Flow:
        return cls("described", (1, 2))

    @classmethod
    def of_service(cls) -> Flow:
        return cls("service", (0,))

    # --- what we send -----------------------------------------------------------------------

    def room(self) -> int:
        """How many bytes may be sent now."""
        return self._send_credit if self.stdin_open else 0

    def sent(self, size: int) -> None:
        if size > self.room():
            raise RuntimeError("more stdin than there is room for")
        self._send_credit -= size

    def consumed(self, channel: int, count: int) -> None:
        """The agent is given credit: after the channel's end too, since it keeps output, and the
        exit, until it has it."""
        if channel in self._may_receive:
            self._may_receive[channel] += count

    # --- what the agent sends; ProtocolError where it has no place ---------------------------

    def advance(self, type_: int) -> None:
        """A frame of this type has come."""
        after = _TRANSITIONS.get((self.state, Type(type_)))
        if after is None:
            raise ProtocolError(f"a frame of type {type_:#x} for a job {self.state}")
        self.state = after

    def received(self, channel: int, size: int) -> None:
        left = self._may_receive.get(channel)
        if left is None or not 0 < size <= left:
            raise ProtocolError(f"output on channel {channel} beyond its credit or end")
        self._may_receive[channel] = left - size

    def ended(self, channel: int) -> None:
        if self._may_receive.pop(channel, None) is None:
            raise ProtocolError(f"a second end of channel {channel}")

    def credited(self, count: int) -> None:
        self._send_credit += count
        if self._send_credit > CREDIT_WINDOW:
            raise ProtocolError("more credit than was used")

    def exited(self) -> None:
        if self._may_receive:
            raise ProtocolError("an exit before the end of its output")

    @property
    def over(self) -> bool:
        """A service stream is over once both ends have closed; a job waits for its EXIT."""
        return self.state == "service" and not self._may_receive and not self.stdin_open
