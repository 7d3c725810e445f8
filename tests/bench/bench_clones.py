"""How long clones take, and what they cost: against a cold boot, several at once, and idle.

The first figure is of `guestctl run --arch --share -- true` as a user types it, from the process's
start to when `--result` says that the command ended. Python's part is the start of the two
interpreters that this needs. The last figures are of guests that do nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from guestctl import Pool, image
from guestctl.places import Places

ARCH = "armv5l"
ROUNDS = 5
IDLE = 8
MANY = 16
SECONDS = 10.0


def first_command(share: str) -> float:
    """From the start of a process to the exit of its first command in a guest with a share."""
    argv = [sys.executable, "-m", "guestctl", "run", "--arch", ARCH, "--share", share]
    with tempfile.NamedTemporaryFile() as result:
        begin = time.time()
        subprocess.run([*argv, "--result", result.name, "--", "true"], check=True)
        return float(json.loads(Path(result.name).read_text())["ended"]) - begin


def in_process(cold: bool) -> float:
    """The same without the command line's start."""
    begin = time.monotonic()
    with Pool(ARCH, 1, cold=cold) as pool, pool.lease(30) as guest, guest.mounted():
        guest.run(["true"]).check()
        return time.monotonic() - begin


def up(size: int) -> float:
    name = f"bench-{os.getpid()}"
    argv = [sys.executable, "-m", "guestctl", "pool", "up", "-n", str(size), "--arch", ARCH]
    begin = time.monotonic()
    subprocess.run([*argv, "--name", name], check=True, capture_output=True)
    seconds = time.monotonic() - begin
    Pool.attach(name).down()
    return seconds


def python() -> float:
    begin = time.monotonic()
    for modules in ("guestctl.cli.run, guestctl.pool", "guestctl.supervisor"):
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return time.monotonic() - begin


def pss(pid: int) -> float:
    """MiB that a process costs, what it shares divided by those who share it."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("Pss:")[1].split()[0]) / 1024


def processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processes(pool: Pool) -> list[int]:
    """QEMU and the supervisor of each guest."""
    found = []
    for folder in pool._dir.guests():
        for process in (folder.qemu(), folder.supervisor()):
            assert process is not None
            found.append(process.pid)
    return found


def idle() -> tuple[float, float]:
    """MiB and shares of a processor that each further idle guest costs."""
    costs = {}
    for size in (1, IDLE):
        with Pool(ARCH, size) as pool:
            pids = processes(pool)
            time.sleep(3)  # swap is made after a guest is ready
            before = sum(map(processor, pids))
            time.sleep(SECONDS)
            used = sum(map(processor, pids)) - before
            costs[size] = (sum(map(pss, pids)), used / SECONDS)
    small, large = costs[1], costs[IDLE]
    return (large[0] - small[0]) / (IDLE - 1), (large[1] - small[1]) / (IDLE - 1)


def many() -> float:
    begin = time.monotonic()
    with Pool(ARCH, MANY) as pool:
        seconds = time.monotonic() - begin
        assert {guest["state"] for guest in pool.status()} == {"ready"}
    return seconds


def main() -> None:
    image.build(ARCH, cache_dir=Places.of_user().cache)
    in_process(cold=False)  # makes the template
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=Path.home()) as share:
        for _ in range(ROUNDS):
            rows.setdefault("clone", []).append(first_command(share))
            rows.setdefault("clone in process", []).append(in_process(cold=False))
            rows.setdefault("cold in process", []).append(in_process(cold=True))
            rows.setdefault("python", []).append(python())
            rows.setdefault("up 4", []).append(up(4))
    middle = {key: statistics.median(values) for key, values in rows.items()}
    memory, cpu = idle()
    print(f"first command in a clone, share mounted   {middle['clone']:.3f} s  (target 0.35)")
    print(f"of that, Python's own start-up            {middle['python']:.3f} s")
    print(f"without the command line: a clone         {middle['clone in process']:.3f} s")
    print(f"without the command line: booted          {middle['cold in process']:.3f} s")
    ratio = middle["clone in process"] / middle["cold in process"]
    print(f"ratio of these                            {ratio:.2f}  (target 0.40)")
    print(f"pool up -n 4                              {middle['up 4']:.3f} s  (target 0.80)")
    print(f"each further idle guest: memory           {memory:.1f} MiB  (target 40)")
    print(f"each further idle guest: processor        {cpu * 100:.2f} %  (target 1)")
    print(f"{MANY} guests at once                        {many():.2f} s")


if __name__ == "__main__":
    main()
