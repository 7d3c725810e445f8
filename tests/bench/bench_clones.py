"""How long clones take, and what they cost: against a cold boot, several at once, and idle.

The first figure is of `guestctl run --arch --share -- true` as a user types it, from the process's
start to when `--result` says that the command ended. The ratio is of the same in processes that
differ in one thing: whether the guest is cloned or booted. Memory and processor are those of all
processes that a guest needs on the host, and of guests that do nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guestctl import Pool, image
from guestctl.places import Places
from guestctl.processes import children

ARCH = "armv5l"
ROUNDS = 7
LEASES = 12
IDLE = 8
MANY = 16
SECONDS = 10.0

# A guest with a share, and the end of its first command, as `run --arch` does it.
FIRST = """
import sys, time
from guestctl import Pool
share, cold = sys.argv[1], sys.argv[2] == "cold"
with Pool("armv5l", 1, share=share, single=True, forks=True, cold=cold) as pool:
    with pool.lease(60) as guest, guest.mounted():
        guest.run(["true"]).check()
        print(time.time())
"""


def command(share: str) -> tuple[float, float]:
    """From the start of `guestctl run` to the exit of its command, and to its own end."""
    argv = [sys.executable, "-m", "guestctl", "run", "--arch", ARCH, "--share", share]
    with tempfile.NamedTemporaryFile() as result:
        begin = time.time()
        subprocess.run([*argv, "--result", result.name, "--", "true"], check=True)
        end = time.time()
        return float(json.loads(Path(result.name).read_text())["ended"]) - begin, end - begin


def first(share: str, way: str) -> float:
    begin = time.time()
    done = subprocess.run(
        [sys.executable, "-c", FIRST, share, way], check=True, capture_output=True
    )
    return float(done.stdout) - begin


@contextmanager
def up(size: int) -> Iterator[tuple[Pool, float]]:
    """A pool as `guestctl pool up` makes it, and how long that took."""
    name = f"bench-{os.getpid()}"
    argv = [sys.executable, "-m", "guestctl", "pool", "up", "-n", str(size), "--arch", ARCH]
    begin = time.monotonic()
    subprocess.run([*argv, "--name", name], check=True, capture_output=True)
    seconds = time.monotonic() - begin
    with Pool.attach(name) as pool:
        assert {guest["state"] for guest in pool.status()} == {"ready"}
        yield pool, seconds


def leases() -> tuple[float, float]:
    """Of fresh leases that find a spare: the middle one's seconds, and the longest's."""
    found = []
    with Pool(ARCH, 1) as pool:
        for _ in range(LEASES):
            begin = time.monotonic()
            guest = pool.lease(60, fresh=True)
            found.append(time.monotonic() - begin)
            guest.release()
            time.sleep(0.2)
            while not pool.spares()["ready"]:
                time.sleep(0.05)
            time.sleep(0.5)  # whoever has made it ends
    return statistics.median(found), max(found)


def python() -> float:
    """The start of the interpreter, and of what is imported until a guest is leased."""
    modules = "guestctl.cli.main, guestctl.cli.run, guestctl.pool, guestctl.supervisor"
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import {modules}, guestctl.guest"], check=True)
    return time.monotonic() - begin


def pss(pid: int) -> float:
    """MiB that a process costs, what it shares divided by those who share it."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("Pss:")[1].split()[0]) / 1024


def processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processes(pool: Pool) -> list[int]:
    """Each guest's supervisor and all below it."""
    found = []
    for folder in pool._dir.guests():
        supervisor = folder.supervisor()
        assert supervisor is not None
        waiting = [supervisor.pid]
        while waiting:
            found.append(waiting.pop())
            waiting += children(found[-1])
    return found


def idle() -> tuple[float, float]:
    """MiB and shares of a processor that each further idle guest costs."""
    costs = {}
    for size in (1, IDLE):
        with up(size) as (pool, _seconds):
            pids = processes(pool)
            time.sleep(1)
            before = sum(map(processor, pids))
            time.sleep(SECONDS)
            used = sum(map(processor, pids)) - before
            costs[size] = (sum(map(pss, pids)), used / SECONDS)
    small, large = costs[1], costs[IDLE]
    return (large[0] - small[0]) / (IDLE - 1), (large[1] - small[1]) / (IDLE - 1)


def measured() -> dict[str, float]:
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=Path.home()) as share:
        command(share)  # makes the template
        for _ in range(ROUNDS):
            ended, whole = command(share)
            rows.setdefault("command", []).append(ended)
            rows.setdefault("whole", []).append(whole)
            for way in ("clone", "cold"):
                rows.setdefault(way, []).append(first(share, way))
            rows.setdefault("python", []).append(python())
            with up(4) as (_pool, seconds):
                rows.setdefault("up", []).append(seconds)
    return {key: statistics.median(values) for key, values in rows.items()}


def main() -> None:
    image.build(ARCH, cache_dir=Places.of_user().cache)
    middle = measured()
    usual, longest = leases()
    memory, cpu = idle()
    with up(MANY) as (_pool, many):
        pass
    ratio = middle["clone"] / middle["cold"]
    print(f"first command in a clone, share mounted   {middle['command']:.3f} s  (limit 0.35)")
    print(f"the same, to the end of guestctl          {middle['whole']:.3f} s")
    print(f"of that, Python's start-up and imports    {middle['python']:.3f} s")
    print(
        f"by the library: a clone, and booted       {middle['clone']:.3f}, {middle['cold']:.3f} s"
    )
    print(f"ratio of these                            {ratio:.2f}  (limit 0.40)")
    print(f"pool up -n 4                              {middle['up']:.3f} s  (limit 0.80)")
    print(f"fresh lease of a spare, and the longest   {usual:.3f}, {longest:.3f} s  (limit 0.050)")
    print(f"each further idle guest: memory           {memory * 1.048576:.1f} MB  (limit 40)")
    print(f"each further idle guest: processor        {cpu * 100:.2f} %  (limit 1)")
    print(f"{MANY} guests at once                        {many:.2f} s")


if __name__ == "__main__":
    main()
