"""Compiling for a guest: a cross build on the host, qemu-user, the guest alone, distcc, offload.

`python -m tests.bench.bench_offload --ways cross,offload lua` measures some of it; the guest alone
and qemu-user take minutes each. One guest, `make -j` as computed. `--guests 4` builds four packages
in as many guests at once, against the same cross builds one after the other with the same jobs.

qemu-user runs the image's own root file system in namespaces of its own, with its interpreter
registered in them alone (binfmt_misc of a user namespace, Linux 6.7), so that no root is needed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from guestctl import Guest, Pool, image, stage
from guestctl.offload import read_ledger, summarize
from guestctl.packages import Archive
from guestctl.packages.apt import host_architecture
from guestctl.places import Places
from guestctl.recipe import parse_lock
from guestctl.toolchain import install

ARCH = "armv5l"
SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
LOCK = Path(__file__).parent.parent.parent / "examples" / "demo.lock"
CROSS = "arm-linux-gnueabi"
WAYS = {"offload": "auto", "distcc": "distcc", "guest": "off"}
# For an ELF file of 32 bits for ARM, whatever its ABI.
BINFMT = (
    r":arm:M::\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
    r":QEMU:FOC"
)


@dataclass(frozen=True)
class Package:
    """The steps of a build with native compilers, and how a cross build differs: all steps' words
    that follow, or the configure step's."""

    source: str
    steps: tuple[str, ...]
    cross: tuple[str, ...]


PACKAGES = {
    "lua": Package(
        "lua5.4",
        ("make -s -j{jobs} linux",),
        (f"make -s -j{{jobs}} linux CC={CROSS}-gcc AR='{CROSS}-ar rcu' RANLIB={CROSS}-ranlib",),
    ),
    "tinyxml2": Package(
        "tinyxml2",
        ("make -s -j{jobs} staticlib xmltest",),
        (f"make -s -j{{jobs}} CXX={CROSS}-g++ AR={CROSS}-ar staticlib xmltest",),
    ),
    "hello": Package(
        "hello",
        ("./configure -q", "make -s -j{jobs}"),
        (f"./configure -q --host={CROSS}", "make -s -j{jobs}"),
    ),
    "zlib": Package(
        "zlib",
        ("./configure >/dev/null", "make -s -j{jobs}"),
        (f"CHOST={CROSS} ./configure >/dev/null", "make -s -j{jobs}"),
    ),
}


def tarballs(places: Places) -> dict[str, Path]:
    wanted = {package.source: name for name, package in PACKAGES.items()}
    entries = [e for e in parse_lock(LOCK.read_text(), str(LOCK)) if e.name in wanted]
    files = Archive(places.cache / "packages", suites=SUITES).fetch(entries)
    return {wanted[entry.name]: path for entry, path in files.items()}


def timed(steps: Sequence[str], folder: Path, prefix: Sequence[str] = ()) -> list[float]:
    """Runs steps in a folder on the host."""
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    times = []
    for step in steps:
        begin = time.monotonic()
        command = [*prefix, "sh", "-ec", step]
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
        times.append(time.monotonic() - begin)
    return times


def unpacked(tarball: Path, folder: Path) -> Path:
    subprocess.run(["tar", "-xf", tarball, "-C", folder], check=True)
    (source,) = folder.iterdir()
    return source


def by_cross(name: str, tarball: Path, jobs: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        steps = [step.format(jobs=jobs) for step in PACKAGES[name].cross]
        return timed(steps, unpacked(tarball, Path(folder)))


def emulator(places: Places) -> Path:
    """A static qemu-arm, from Debian's package, which is not installed: that would register it."""
    kept = places.cache / "bench" / "qemu-arm-static"
    if not kept.exists():
        archive = Archive(places.cache / "packages", suites=SUITES)
        (package,) = archive.fetch(archive.pick(["qemu-user-static"], host_architecture())).values()
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
            kept.parent.mkdir(exist_ok=True)
            shutil.copy2(Path(folder, "usr/bin/qemu-arm-static"), kept)
    return kept


def by_qemu_user(name: str, tarball: Path, places: Places, jobs: int) -> list[float]:
    """The image's root file system, with the interpreter registered in our namespaces alone."""
    root = image.root_folder(image.load(ARCH, cache_dir=places.cache))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        unpacked(tarball, folder)
        (source,) = folder.iterdir()
        enter = folder / "enter"
        register = BINFMT.replace("QEMU", str(emulator(places)))
        enter.write_text(
            "set -e; mount -t binfmt_misc none /proc/sys/fs/binfmt_misc\n"
            f"echo '{register}' >/proc/sys/fs/binfmt_misc/register\n"
            f"exec bwrap --ro-bind {root} / --dev /dev --proc /proc --tmpfs /tmp"
            f" --bind {source} {source} --chdir {source} --setenv PATH /usr/bin:/bin"
            ' -- "$@"\n'
        )
        steps = [step.format(jobs=jobs) for step in PACKAGES[name].steps]
        return timed(steps, source, ["unshare", "-Urm", "sh", str(enter)])


def in_guest(guest: Guest, name: str, tarball: Path, jobs: int) -> list[float]:
    stage(tarball, guest.work, into=name)
    times = []
    with guest.mounted():
        for step in PACKAGES[name].steps:
            script = f"cd /work/{name}/*/; {step.format(jobs=jobs)}"
            begin = time.monotonic()
            guest.run(["sh", "-ec", script], timeout=3000, env={"LC_ALL": "C.UTF-8"}).check()
            times.append(time.monotonic() - begin)
    return times


def row(name: str, way: str, times: list[float], host: float | None) -> None:
    total = sum(times)
    parts = " + ".join(f"{seconds:.1f}" for seconds in times)
    ratio = f"{total / host:6.2f} x" if host else " " * 8
    print(f"{name:10} {way:14} {total:8.1f} s  {ratio}  ({parts})", flush=True)


def one_guest(places: Places, names: Sequence[str], ways: Sequence[str]) -> None:
    sources = tarballs(places)
    slots = len(os.sched_getaffinity(0))
    hosts: dict[str, float] = {}
    if "cross" in ways:
        for name in names:
            times = by_cross(name, sources[name], slots)
            hosts[name] = sum(times)
            row(name, "host, cross", times, hosts[name])
    if "qemu-user" in ways:
        for name in names:
            times = by_qemu_user(name, sources[name], places, slots)
            row(name, "qemu-user", times, hosts.get(name))
    for way, offload in WAYS.items():
        if way not in ways:
            continue
        with Pool(ARCH, 1, places=places, offload=offload) as pool, pool.lease(60) as guest:
            for name in names:
                row(name, way, in_guest(guest, name, sources[name], guest.jobs), hosts.get(name))
            if guest.offload:
                summary = summarize(read_ledger(guest.offload.ledger.path))
                print(f"{'':10} {way}: {summary.calls} calls, {summary.where}")


def several_guests(places: Places, count: int) -> None:
    """As many packages in as many guests, and the same cross builds with the same jobs at once."""
    sources = tarballs(places)
    names = list((*PACKAGES,) * count)[:count]
    slots = len(os.sched_getaffinity(0))

    def cross(name: str) -> float:
        return sum(by_cross(name, sources[name], max(1, slots // 2)))

    begin = time.monotonic()
    with ThreadPoolExecutor(slots) as threads:
        list(threads.map(cross, names))
    host = time.monotonic() - begin
    row("together", f"{count} cross", [host], host)
    with Pool(ARCH, count, places=places) as pool, ThreadPoolExecutor(count) as threads:

        def build(name: str) -> float:
            with pool.lease(60) as guest:
                return sum(in_guest(guest, name, sources[name], guest.jobs))

        begin = time.monotonic()
        each = list(threads.map(build, names))
        row("together", f"{count} guests", [time.monotonic() - begin], host)
        for name, seconds in zip(names, each, strict=True):
            row(name, "of these", [seconds], None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    known = ("cross", "qemu-user", *WAYS)
    parser.add_argument("--ways", default="cross,offload,distcc", help=f"of {','.join(known)}")
    parser.add_argument("--guests", type=int, default=1, help="so many at once, by offload alone")
    parser.add_argument("packages", nargs="*", default=["lua", "tinyxml2", "hello"])
    options = parser.parse_args()
    places = Places.of_user()
    image.build(ARCH, cache_dir=places.cache)
    install(ARCH, cache_dir=places.cache)
    if options.guests > 1:
        several_guests(places, options.guests)
        return
    one_guest(places, options.packages, options.ways.split(","))
    print("limits: lua 1.5 x, tinyxml2 2 x, hello 6 x; offload at least 4 times as fast as distcc")


if __name__ == "__main__":
    main()
