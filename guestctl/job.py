"""A command, or a service stream, as the host sees it: what its agent says waits here until it is
taken."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from guestctl import events

__all__ = ["Job"]

_CROWDED = 256
_SMALL = 8192


class Job:
    """`caller` is what the agent says of a stream's other end, by wire.Tag; `over`: nothing can be
    sent any more. All but `wake` and `put_back` is for whoever holds `lock`, the session's."""

    def __init__(
        self, id_: int, lock: threading.RLock, caller: Mapping[int, bytes] | None = None
    ) -> None:
        self.id = id_
        self.caller = caller or {}
        self.changed = threading.Condition(lock)
        self.queue: deque[events.Event] = deque()
        self.over = False

    def put(self, event: events.Event) -> None:
        if len(self.queue) < _CROWDED or not self._joined(event):
            self.queue.append(event)
        self.changed.notify_all()

    def put_back(self, event: events.Event | None) -> None:
        """Undoes a `next`, for a caller that could not mind its event."""
        if event is not None:
            with self.changed:
                self.queue.appendleft(event)

    def wake(self) -> None:
        """Has `next` give a Woken; may be called by a signal's handler."""
        with self.changed:
            self.queue.append(events.Woken())
            self.changed.notify_all()

    def end(self) -> None:
        self.over = True
        self.changed.notify_all()

    def next(self, timeout: float | None, check: Callable[[], None]) -> events.Event | None:
        """The next event, or None after `timeout` seconds; `check` raises where none will come."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.queue:
            # What came before the loss is still handed out.
            check()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            self.changed.wait(left)
        return self.queue.popleft()

    def _joined(self, event: events.Event) -> bool:
        """Adds output to a piece of the same channel that waits, if it is small and among the last.

        Credit bounds the bytes that wait, and this the pieces: an agent may send byte by byte.
        """
        if isinstance(event, events.Output):
            for at in (-1, -2):
                last = self.queue[at]
                if isinstance(last, events.Output) and last.channel == event.channel:
                    if len(last.data) < _SMALL:
                        self.queue[at] = replace(last, data=last.data + event.data)
                        return True
                    break
        return False
