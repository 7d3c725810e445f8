"""Compiling for a guest: cross build on the host, qemu-user, guest alone, distcc, offload.

One guest, `make -j` as computed, the host's cross build with as many jobs as it has processors. All
of it takes half an hour, most of which is the guest alone and qemu-user. In pieces:

    python -m tests.bench.bench_offload --ways cross,offload,distcc --kept rows.json lua
    python -m tests.bench.bench_offload --ways guest --kept rows.json lua
    python -m tests.bench.bench_offload --together --kept rows.json

Rows of the file are kept, and the table and the limits are of all that is in it. With `--times N`
cross, distcc and offload are measured N times by turns, and their medians count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from guestctl import Guest, Pool, image
from guestctl.offload import read_ledger, summarize
from guestctl.places import Places
from guestctl.toolchain import install
from tests.bench.compiling import (
    ARCH,
    BY_GUEST,
    WAYS,
    by_cross,
    by_qemu_user,
    in_guest,
    tarballs,
)

USUAL = ("lua", "hello", "hello-sh", "tinyxml2")
# Four guests at once: small packages, and larger ones of many small files.
TOGETHER = {
    "together": ("lua", "zlib", "tinyxml2", "bzip2"),
    "larger": ("mbedtls", "libtomcrypt", "libtommath", "bearssl"),
}
SLOW = ("qemu-user", "guest")  # never measured more than once

# Seconds of each step, by package and way; for several packages together, of the whole.
Rows = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Limit:
    """`value` is a ratio of rows; it must be at most `most`, or at least `least`."""

    what: str
    value: Callable[[Rows], float]
    most: float | None = None
    least: float | None = None

    def verdict(self, rows: Rows) -> str:
        try:
            found = self.value(rows)
        except KeyError:
            return ""
        met = found <= self.most if self.most is not None else found >= (self.least or 0)
        limit = f"≤ {self.most}" if self.most is not None else f"≥ {self.least}"
        return f"{self.what:72} {found:6.2f} {limit:>6}  {'met' if met else 'MISSED'}"


def ratio(package: str, one: str, other: str) -> Callable[[Rows], float]:
    """How many times as long as `other` a package takes by `one`."""
    return lambda rows: sum(rows[package][one]) / sum(rows[package][other])


def make_ratio(package: str, one: str, other: str) -> Callable[[Rows], float]:
    """The same of the step that compiles."""
    return lambda rows: rows[package][one][-1] / rows[package][other][-1]


LIMITS = (
    Limit("lua: offload against cross", ratio("lua", "offload", "cross"), most=1.5),
    Limit("tinyxml2: offload against cross", ratio("tinyxml2", "offload", "cross"), most=2),
    Limit("hello: offload against cross", ratio("hello", "offload", "cross"), most=6),
    Limit("hello-sh: offload against cross", ratio("hello-sh", "offload", "cross"), most=6),
    Limit("hello: qemu-user against offload", ratio("hello", "qemu-user", "offload"), least=2.5),
    *(
        Limit(
            f"{name}, make: distcc against offload", make_ratio(name, "distcc", "offload"), least=4
        )
        for name in ("lua", "tinyxml2", "mbedtls")
    ),
    Limit("lua, make: guest alone against distcc", make_ratio("lua", "guest", "distcc"), least=5),
    *(
        Limit(
            f"four guests together against cross builds: {', '.join(names)}",
            ratio(row, "offload", "cross"),
            most=1.3,
        )
        for row, names in TOGETHER.items()
    ),
)


def one_guest(places: Places, names: Sequence[str], ways: Sequence[str], times: int) -> Rows:
    """Each package by each way, by turns; the guests of all ways are up meanwhile, and idle."""
    sources = tarballs(names, places)
    slots = len(os.sched_getaffinity(0))
    found: dict[tuple[str, str], list[list[float]]] = {}
    with ExitStack() as stack:
        guests: dict[str, Guest] = {}
        for way in ways:
            if way in BY_GUEST:
                pool = stack.enter_context(Pool(ARCH, 1, places=places, offload=BY_GUEST[way]))
                guests[way] = stack.enter_context(pool.lease(timeout=60))
        for name in names:
            for turn in range(times):
                for way in ways:
                    if turn and way in SLOW:
                        continue
                    if way == "cross":
                        took = by_cross(name, sources[name], slots)
                    elif way == "qemu-user":
                        took = by_qemu_user(name, sources[name], places, slots)
                    else:
                        took = in_guest(guests[way], name, sources[name])
                    print(f"{name} {way}: {_steps(took)} s", flush=True)
                    found.setdefault((name, way), []).append(took)
        for way, guest in guests.items():
            if guest.offload:
                summary = summarize(read_ledger(guest.offload.ledger.path))
                reasons = "; ".join(f"{count} {text}" for text, count in summary.reasons[:3])
                print(f"{way}: {summary.calls} calls, {summary.where} {reasons}")
    rows: Rows = {}
    for (name, way), every in found.items():
        rows.setdefault(name, {})[way] = [
            statistics.median(step) for step in zip(*every, strict=True)
        ]
    return rows


def together(places: Places, row: str, names: Sequence[str]) -> Rows:
    """As many packages in as many guests at once; and the same cross builds at once, with so many
    jobs in all as the host has slots, which is what the guests may use of it."""
    sources = tarballs(names, places)
    slots = len(os.sched_getaffinity(0))

    def cross(name: str) -> float:
        return sum(by_cross(name, sources[name], 1))

    begin = time.monotonic()
    with ThreadPoolExecutor(slots) as threads:
        list(threads.map(cross, names))
    host = time.monotonic() - begin
    with Pool(ARCH, len(names), places=places) as pool, ThreadPoolExecutor(len(names)) as threads:

        def build(name: str) -> float:
            with pool.lease(timeout=60) as guest:
                return sum(in_guest(guest, name, sources[name]))

        begin = time.monotonic()
        each = list(threads.map(build, names))
        guests = time.monotonic() - begin
    parts = ", ".join(f"{n} {seconds:.1f}" for n, seconds in zip(names, each, strict=True))
    print(f"in guests at once: {parts} s")
    return {row: {"cross": [host], "offload": [guests]}}


def _steps(times: Sequence[float]) -> str:
    return " + ".join(f"{seconds:.1f}" for seconds in times)


def show(rows: Rows) -> None:
    print(f"\n{'package':10} {'way':10} {'seconds':>8} {'cross':>8}  configure + make")
    for name, by_way in rows.items():
        for way in WAYS:
            if way not in by_way:
                continue
            total = sum(by_way[way])
            times = f"{total / sum(by_way['cross']):6.1f} x" if "cross" in by_way else ""
            print(f"{name:10} {way:10} {total:8.1f} {times:>8}  {_steps(by_way[way])}")
    print()
    for limit in LIMITS:
        if line := limit.verdict(rows):
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ways", default=",".join(WAYS), help=f"of {','.join(WAYS)}")
    parser.add_argument("--times", type=int, default=1, help="so often, by turns; medians count")
    parser.add_argument("--kept", type=Path, help="add to the rows in this file")
    parser.add_argument(
        "--together", action="store_true", help="four guests at once, and nothing else"
    )
    parser.add_argument("packages", nargs="*", help=f"default: {' '.join(USUAL)}")
    options = parser.parse_args()
    places = Places.of_user()
    image.build(ARCH, cache_dir=places.cache)
    install(ARCH, cache_dir=places.cache)
    rows: Rows = {}
    if options.kept and options.kept.exists():
        rows = json.loads(options.kept.read_text())
    made: Rows = {}
    if not options.together:
        names, ways = options.packages or USUAL, options.ways.split(",")
        made = one_guest(places, names, ways, options.times)
    if options.together or not options.packages:
        sets = {"together": options.packages} if options.packages else TOGETHER
        for row, names in sets.items():
            made |= together(places, row, names)
    for name, by_way in made.items():
        rows.setdefault(name, {}).update(by_way)
    if options.kept:
        options.kept.write_text(json.dumps(rows, indent=1))
    show(rows)


if __name__ == "__main__":
    main()
