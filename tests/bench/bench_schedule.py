"""The builder's scheduler on a graph as large and deep as YBD's: what it costs, what it uses.

Durations are simulated: nothing is built. `bound` is what no schedule can beat: the longest path,
or all work spread evenly.
"""

from __future__ import annotations

import heapq
import random
import time

from guestctl.builder.graph import closure, longest_paths
from guestctl.builder.schedule import Schedule

COMPONENTS = 420
LAYERS = 24  # the toolchain's stages, then libraries, then what uses them
GUESTS = (1, 4, 16, 64)


def graph_like_ybd(seed: int) -> tuple[dict[str, tuple[str, ...]], dict[str, float]]:
    """Few components in the first layers, each needing the one before; many in the later ones."""
    chance = random.Random(seed)
    names = [f"c{number:03}" for number in range(COMPONENTS)]
    layer = {
        name: min(LAYERS - 1, int(LAYERS * (n / COMPONENTS) ** 0.45))
        for n, name in enumerate(names)
    }
    graph: dict[str, tuple[str, ...]] = {}
    for name in names:
        below = [other for other in names if layer[other] == layer[name] - 1]
        graph[name] = tuple(chance.sample(below, min(len(below), chance.randint(1, 4))))
    # As the builder's graph, in which each needs all that is in its sysroot.
    whole = {name: tuple(sorted(closure(graph, graph[name]))) for name in names}
    seconds = {name: chance.lognormvariate(3.0, 1.2) for name in names}
    return whole, seconds


def simulate(
    graph: dict[str, tuple[str, ...]], seconds: dict[str, float], guests: int
) -> tuple[float, float]:
    """The simulated seconds of the whole build, and the real ones that scheduling took."""
    begin = time.perf_counter()
    schedule = Schedule(graph, seconds)
    now, running = 0.0, []
    while not schedule.ended:
        while len(running) < guests and (name := schedule.start()) is not None:
            heapq.heappush(running, (now + seconds[name], name))
        now, name = heapq.heappop(running)
        schedule.done(name)
    return now, time.perf_counter() - begin


def main() -> None:
    graph, seconds = graph_like_ybd(7)
    work = sum(seconds.values())
    path = max(longest_paths(graph, seconds).values())
    print(f"{COMPONENTS} components, {work:.0f} s of work, longest path {path:.0f} s (simulated)")
    print("guests     wall     bound   wall/bound   busy    scheduling, all and each")
    for guests in GUESTS:
        wall, cost = simulate(graph, seconds, guests)
        bound = max(path, work / guests)
        print(
            f"{guests:6} {wall:8.0f} s {bound:7.0f} s {wall / bound:9.3f}"
            f" {work / wall / guests:8.0%} {cost * 1000:9.1f} ms {cost / COMPONENTS * 1e6:6.0f} µs"
        )


if __name__ == "__main__":
    main()
