"""What the process that starts a supervisor gives to it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Handover", "tell_starter"]


@dataclass(frozen=True)
class Handover:
    """Descriptors, -1 for what is not there, and some facts.

    `agent` and `monitor` are listening sockets. On `notify`, a pipe, one line of JSON says that the
    guest is ready or why not. `share` holds the lock of the guest's share. `memory`, `state` and
    `scratch` are what a clone is made of, `ident` is their name, and `pace` the template's;
    `filled` is a pipe that ends when the memory is there. When the process `owner_pid`, begun at
    `owner_start`, ends, the guest has no reason to stay; 0: it has no owner.
    """

    folder: str
    agent: int
    monitor: int
    notify: int
    share: int
    ident: str = ""
    pace: float = 1.0
    memory: int = -1
    filled: int = -1
    state: int = -1
    scratch: int = -1
    owner_pid: int = 0
    owner_start: int = 0

    @property
    def descriptors(self) -> list[int]:
        """All of them that are there."""
        numbers = (self.agent, self.monitor, self.notify, self.share)
        clone = (self.memory, self.filled, self.state, self.scratch)
        return [each for each in (*numbers, *clone) if each >= 0]

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Handover:
        return cls(**json.loads(text))


def tell_starter(notify: int, facts: dict[str, Any]) -> None:
    """Says once, to whoever started a supervisor, that its guest is ready or why not."""
    try:
        os.write(notify, json.dumps(facts).encode() + b"\n")
        os.close(notify)
    except OSError:
        # Whoever started us is gone; the state file tells the next one.
        return
