"""`guestctl pool status --watch`: a table that follows what the guests do."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from guestctl.processes import processor_time

if TYPE_CHECKING:
    from rich.table import Table

    from guestctl.pool import Pool

__all__ = ["HEADS", "Rates", "rows", "watch"]

HEADS = ("GUEST", "STATE", "JOB", "RUN TIME", "CPU", "MEMORY", "SWAP", "OUTPUT", "COMMAND")
_COMMAND = 40


@dataclass
class Rates:
    """What counters have grown by since they were last asked for, per second."""

    _before: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def of(self, guest: str, what: str, count: float, now: float) -> float | None:
        """None the first time, and where a counter began anew."""
        then, before = self._before.get((guest, what), (now, count))
        self._before[guest, what] = (now, count)
        return (count - before) / (now - then) if now > then and count >= before else None


def rows(guests: list[dict[str, Any]], rates: Rates, now: float) -> Iterator[tuple[str, ...]]:
    """A line for each guest, from what `Pool.status` says."""
    for guest in guests:
        name, jobs = guest["name"], guest["jobs"]
        job = jobs[-1] if jobs else None
        cpu = rates.of(name, "cpu", processor_time(guest["qemu_pid"] or 0)[0], now)
        written = sum(each.get("output", 0) for each in jobs)
        output = rates.of(name, "output", written, now)
        memory, swap = _memory(guest["guest_memory"]) if job else ("-", "-")
        yield (
            name,
            guest["state"],
            (job["name"] + (f" +{len(jobs) - 1}" if len(jobs) > 1 else "")) if job else "-",
            _duration(now - job["since"]) if job and "since" in job else "-",
            "-" if cpu is None else f"{cpu * 100:.0f}%",
            memory,
            swap,
            "-" if output is None or not job else f"{_size(output)}/s",
            " ".join(job.get("argv", []))[:_COMMAND] if job else guest["cause"],
        )


def watch(pool: Pool, interval: float) -> None:
    """Until interrupted, or the pool is down. Plain lines where stdout is not a terminal."""
    rates = Rates()
    try:
        if sys.stdout.isatty():
            _live(pool, rates, interval)
        else:
            for guests in _snapshots(pool, interval):
                for row in rows(guests, rates, time.time()):
                    click.echo("  ".join(row))
    except KeyboardInterrupt:
        return


def _live(pool: Pool, rates: Rates, interval: float) -> None:
    from rich.live import Live

    with Live(auto_refresh=False, transient=False) as live:
        for guests in _snapshots(pool, interval):
            live.update(_table(rows(guests, rates, time.time())), refresh=True)


def _table(lines: Iterator[tuple[str, ...]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(*HEADS, box=box.SIMPLE_HEAD, pad_edge=False)
    for line in lines:
        # As text: what a command is called must not become markup.
        table.add_row(*(Text(_printable(cell)) for cell in line))
    return table


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _snapshots(pool: Pool, interval: float) -> Iterator[list[dict[str, Any]]]:
    while guests := pool.status():
        yield guests
        time.sleep(interval)


def _memory(figures: list[int]) -> tuple[str, str]:
    """What of memory and of swap is used, from KiB."""
    if len(figures) != 4:
        return "-", "-"
    total, available, swap, free = figures
    return f"{(total - available) >> 10}/{total >> 10}M", f"{(swap - free) >> 10}/{swap >> 10}M"


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}"


def _size(count: float) -> str:
    for unit in ("B", "K", "M"):
        if count < 1000:
            return f"{count:.0f}{unit}"
        count /= 1024
    return f"{count:.1f}G"
