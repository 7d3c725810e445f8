"""What a build shows while it goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from guestctl.builder.events import Event

__all__ = ["Screen"]


class Screen:
    """Takes a builder's events. `calls` says how many calls of compilers ran where so far, for a
    component that is being built.
    """

    def __init__(self) -> None:
        self.calls: Callable[[str], Mapping[str, int]] = lambda _name: {}
        self._lock = threading.Lock()
        self._running: dict[str, tuple[str, str, float]] = {}
        self._live: Any = None
        self._ends = 0.0
        self._ended: Counter[str] = Counter()

    def __enter__(self) -> Screen:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True), get_renderable=self._table, refresh_per_second=2
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._ends = time.monotonic() + event.rest
            if event.kind in ("start", "step"):
                guest, _, begin = self._running.get(event.name, (event.guest, "", time.monotonic()))
                self._running[event.name] = (guest, event.text, begin)
            elif event.kind != "waits":
                self._running.pop(event.name, None)
                self._ended.update(event.calls)
            if event.kind != "step" or not self._live:
                self._line(event)

    def _line(self, event: Event) -> None:
        words = [
            event.kind,
            event.text.removeprefix(f"{event.name}: "),
            f"in {event.guest}" if event.guest else "",
        ]
        if event.kind in ("done", "failed", "lost"):
            words.append(f"after {event.seconds:.1f} s")
        if event.kind == "done" and event.calls:
            words.append(f"({_accelerated(event.calls)})")
        text = f"{event.name}: " + " ".join(word for word in words if word)
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            click.echo(text, err=True)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table("component", "guest", "step", "elapsed", "", box=None)
        now = time.monotonic()
        with self._lock:
            running, total = sorted(self._running.items()), Counter(self._ended)
        for name, (guest, step, begin) in running:
            calls = self.calls(name)
            total.update(calls)
            table.add_row(name, guest, step, f"{now - begin:.0f} s", _accelerated(calls))
        if running:
            rest = max(0.0, self._ends - now)
            table.caption = f"at least {rest:.0f} s to go; {_accelerated(total) or 'no calls yet'}"
        return table


def _accelerated(calls: Mapping[str, int]) -> str:
    """The share of calls that did not run in the guest; empty when there were none."""
    total = sum(calls.values())
    if not total:
        return ""
    return f"{100 * (total - calls.get('guest', 0)) / total:.0f} % of {total} calls accelerated"
