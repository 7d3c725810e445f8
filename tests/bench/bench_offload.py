"""Compiling for a guest: a cross build on the host, offload, distcc, and the guest alone.

`python -m tests.bench.bench_offload --native` measures the guest alone too, which takes minutes.
One guest; `make -j` as computed. configure of hello runs in the guest but for its compilers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from guestctl import Guest, Pool, stage
from guestctl.offload import read_ledger, summarize
from guestctl.packages import Archive
from guestctl.places import Places
from guestctl.recipe import parse_lock
from guestctl.toolchain import install

ARCH = "armv5l"
SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
LOCK = Path(__file__).parent.parent.parent / "examples" / "demo.lock"
CROSS = "arm-linux-gnueabi"
# Of each package: the script of a build on the host, and its steps in the guest.
HOST = {
    "lua5.4": f"make -s -j{{jobs}} linux CC={CROSS}-gcc AR='{CROSS}-ar rcu' RANLIB={CROSS}-ranlib",
    "tinyxml2": f"make -s -j{{jobs}} CXX={CROSS}-g++ AR={CROSS}-ar staticlib xmltest",
    "hello": f"./configure -q --host={CROSS} && make -s -j{{jobs}}",
}
GUEST = {
    "lua5.4": ("make -s -j{jobs} linux",),
    "tinyxml2": ("make -s -j{jobs} staticlib xmltest",),
    "hello": ("./configure -q", "make -s -j{jobs}"),
}


def tarballs(places: Places) -> dict[str, Path]:
    entries = [e for e in parse_lock(LOCK.read_text(), str(LOCK)) if e.name in HOST]
    files = Archive(places.cache / "packages", suites=SUITES).fetch(entries)
    return {entry.name: path for entry, path in files.items()}


def on_host(name: str, tarball: Path, jobs: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "-xf", tarball, "-C", folder], check=True)
        (source,) = Path(folder).iterdir()
        env = {**os.environ, "LC_ALL": "C.UTF-8"}
        begin = time.monotonic()
        script = HOST[name].format(jobs=jobs)
        subprocess.run(["sh", "-ec", script], cwd=source, env=env, check=True, capture_output=True)
        return time.monotonic() - begin


def in_guest(guest: Guest, name: str, tarball: Path, jobs: int) -> list[float]:
    stage(tarball, guest.work, into=name)
    with guest.mounted():
        times = []
        for step in GUEST[name]:
            script = f"cd /work/{name}/*/; {step.format(jobs=jobs)}"
            begin = time.monotonic()
            guest.run(["sh", "-ec", script], timeout=1200, env={"LC_ALL": "C.UTF-8"}).check()
            times.append(time.monotonic() - begin)
    return times


def row(name: str, way: str, times: list[float], host: float) -> None:
    total = sum(times)
    parts = " + ".join(f"{seconds:.1f}" for seconds in times)
    print(f"{name:10} {way:14} {total:8.1f} s  {total / host:6.2f} x  ({parts})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--native", action="store_true", help="the guest alone as well")
    parser.add_argument("packages", nargs="*", default=list(HOST))
    options = parser.parse_args()
    places = Places.of_user()
    install(ARCH, cache_dir=places.cache)
    sources = tarballs(places)
    ways = {"offload": "auto", "distcc": "distcc", **({"guest": "off"} if options.native else {})}
    slots = len(os.sched_getaffinity(0))
    if "tinyxml2" in options.packages and not shutil.which(f"{CROSS}-g++"):
        options.packages.remove("tinyxml2")
        print(f"tinyxml2 is left out: {CROSS}-g++ is not installed (g++-{CROSS})")
    hosts = {name: on_host(name, sources[name], slots) for name in options.packages}
    for name in options.packages:
        row(name, "host, cross", [hosts[name]], hosts[name])
    for way, offload in ways.items():
        with Pool(ARCH, 1, places=places, offload=offload) as pool, pool.lease(60) as guest:
            for name in options.packages:
                row(name, way, in_guest(guest, name, sources[name], guest.jobs), hosts[name])
            if guest.offload:
                summary = summarize(read_ledger(guest.offload.ledger.path))
                print(f"{'':10} {way}: {summary.calls} calls, {summary.where}")
    print("targets: lua 1.5 x, tinyxml2 2 x, hello 6 x; offload at least 4 times as fast as distcc")


if __name__ == "__main__":
    main()
