"""What an agent says, as values: one class for each thing that `session.feed` can report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from guestctl.errors import RequestFailed
from guestctl.spec import Usage

__all__ = [
    "Credited",
    "Ended",
    "Event",
    "Exited",
    "Logged",
    "NotStarted",
    "Opened",
    "Output",
    "Ponged",
    "Replied",
    "Started",
    "StreamReset",
    "Welcomed",
    "Woken",
]


@dataclass(frozen=True, slots=True)
class Event:
    pass


@dataclass(frozen=True, slots=True)
class Woken(Event):
    """Nothing has been said: somebody wants whoever waits to look around."""


@dataclass(frozen=True, slots=True)
class Welcomed(Event):
    agent: str
    boot_id: str
    machine: str
    jobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Started(Event):
    """`stdout` and `stderr` are how many bytes of each an earlier session has taken: output goes on
    behind them."""

    job: int
    pid: int
    stdout: int = 0
    stderr: int = 0


@dataclass(frozen=True, slots=True)
class NotStarted(Event):
    job: int
    errno: int
    stage: int
    text: str


@dataclass(frozen=True, slots=True)
class Output(Event):
    stream: int
    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """A channel will carry nothing more."""

    stream: int
    channel: int


@dataclass(frozen=True, slots=True)
class Credited(Event):
    stream: int
    count: int


@dataclass(frozen=True, slots=True)
class Exited(Event):
    job: int
    signalled: bool
    value: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class Replied(Event):
    request: int
    errno: int
    text: str
    memory: tuple[int, ...] = ()

    def checked(self, what: str) -> Replied:
        """Itself; raises RequestFailed, of `what` was asked for, where it tells of an error."""
        if self.errno:
            reason = os.strerror(self.errno)
            text = f"{self.text}: {reason}" if self.text else reason
            raise RequestFailed(f"{what}: {text}", errno=self.errno)
        return self


@dataclass(frozen=True, slots=True)
class Opened(Event):
    stream: int
    service: bytes
    # What the agent knows of the caller, by wire.Tag; empty where it knows nothing.
    caller: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamReset(Event):
    stream: int
    errno: int
    text: str


@dataclass(frozen=True, slots=True)
class Ponged(Event):
    token: int


@dataclass(frozen=True, slots=True)
class Logged(Event):
    text: str
