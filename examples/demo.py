"""`make demo`: four packages built natively in four ARMv5 guests, side by side.

Nothing here is more than a user of the library and of the command line can do.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from guestctl import Guest, GuestctlError, Pool, collect, stage
from guestctl.packages import Archive
from guestctl.places import Places
from guestctl.recipe import parse_lock
from guestctl.rundir import pool_names

ARCH = "armv5l"
POOL = "demo"
EPOCH = 1_700_000_000
SUITES = ("bookworm", "bookworm-updates", "bookworm-security")


# The commands that build each of the packages in demo.lock, in the unpacked source. GNU hello's
# configure script needs no bash: docs/offload.md says what that spares.
COMMANDS = {
    "zlib": ("./configure --prefix=/usr", "make -j$J", "make install DESTDIR=$INST"),
    "lua5.4": ("make -j$J linux", "make install INSTALL_TOP=$INST/usr"),
    "hello": (
        "CONFIG_SHELL=/bin/sh ./configure --prefix=/usr",
        "make -j$J",
        "make install DESTDIR=$INST",
    ),
    "tinyxml2": ("make -j$J", "./xmltest", "make install DESTDIR=$INST prefix=/usr"),
}


@dataclass
class Built:
    package: str
    guest: str
    artifact: Path
    stage: float = 0.0
    build: float = 0.0
    collect: float = 0.0


_printing = threading.Lock()
_begin = time.monotonic()


def say(text: str) -> None:
    with _printing:
        print(f"[{time.monotonic() - _begin:6.1f} s] {text}", flush=True)


def guestctl(*argv: str) -> None:
    """The command line, as a user would type it."""
    say("$ guestctl " + " ".join(argv))
    subprocess.run([sys.executable, "-m", "guestctl", *argv], check=True)


def build(package: str, tarball: Path, out: Path) -> Built:
    """One package in one guest: stage, build, install, collect."""
    with Pool.attach(POOL).lease(timeout=600, fresh=True) as guest:
        built = Built(package, guest.name, out / f"{package}.tar.gz")
        begin = time.monotonic()
        stage(tarball, guest.work, into="build")
        built.stage = time.monotonic() - begin
        say(f"{guest.name}: {package} staged, building")
        begin = time.monotonic()
        with guest.mounted(), open(out / f"{package}.log", "wb") as log:
            for command in COMMANDS[package]:
                run(guest, command, log)
                say(f"{guest.name}: {package}: done: {command}")
        built.build = time.monotonic() - begin
        begin = time.monotonic()
        collect(guest.work, built.artifact, path="inst", mtime=EPOCH)
        built.collect = time.monotonic() - begin
    say(f"{built.guest}: {package} is in {built.artifact.name}")
    return built


def run(guest: Guest, command: str, log: object) -> None:
    """One build command in the unpacked source; raises CommandFailed."""
    guest.run(
        ["sh", "-ec", f"cd /work/build/*/; {command}"],
        env={"INST": "/work/inst", "J": str(guest.jobs)},
        log=log,  # type: ignore[arg-type]
        timeout=3600,
        idle_timeout=900,
    ).check()


def show(artifact: Path) -> None:
    """Stages what was built into a clean tree, and runs it there."""
    with Pool.attach(POOL).lease(timeout=600, fresh=True) as guest:
        stage(artifact, guest.work)
        with guest.mounted():
            for argv in (["file", "-b", "/work/usr/bin/hello"], ["/work/usr/bin/hello"]):
                text = guest.run(argv, timeout=120).check().stdout.decode().strip()
                say(f"{guest.name}: {' '.join(argv)}: {text}")
                if argv[0] == "file" and "ARM" not in text:
                    raise GuestctlError("what was built is not for ARM")


def down(places: Places) -> None:
    """Takes the pool down, and looks whether anything of it is left."""
    known = [facts["qemu_pid"] for facts in Pool.attach(POOL).status() if facts["qemu_pid"]]
    guestctl("pool", "down", "--name", POOL)
    alive = [pid for pid in known if Path(f"/proc/{pid}").exists()]
    folders = (places.runtime / "pools" / POOL, places.cache / "shares" / POOL)
    files = [path for path in folders if path.exists()]
    if alive or files:
        raise GuestctlError(f"something is left of the pool: processes {alive}, files {files}")
    say(f"nothing is left of the pool's {len(known)} guests")


def table(rows: list[Built]) -> None:
    print(f"\n{'package':10} {'guest':6} {'stage':>8} {'build':>9} {'collect':>8}  artifact")
    for row in rows:
        size = row.artifact.stat().st_size
        print(
            f"{row.package:10} {row.guest:6} {row.stage:6.2f} s {row.build:7.1f} s"
            f" {row.collect:6.2f} s  {row.artifact.name} ({size:,} bytes)"
        )
    print(f"in all {time.monotonic() - _begin:.0f} s\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="for the artifacts")
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    guestctl("image", "build", ARCH)
    guestctl("toolchain", "install", ARCH)
    places = Places.of_user()
    lock = Path(__file__).with_name("demo.lock")
    entries = parse_lock(lock.read_text(), str(lock))
    archive = Archive(places.cache / "packages", suites=SUITES)
    tarballs = {entry.name: path for entry, path in archive.fetch(entries).items()}
    for entry in entries:
        say(f"{entry.name} {entry.version}: SHA-256 {entry.sha256[:16]}… as locked")
    if POOL in pool_names(places.runtime):
        # Of a demo that was killed.
        down(places)
    guestctl("pool", "up", "-n", str(len(COMMANDS)), "--arch", ARCH, "--name", POOL)
    try:
        with ThreadPoolExecutor(len(COMMANDS)) as workers:
            jobs = [workers.submit(build, package, tarballs[package], out) for package in COMMANDS]
            rows = [job.result() for job in jobs]
        show(next(row.artifact for row in rows if row.package == "hello"))
        guestctl("offload", "report", "--name", POOL)
    finally:
        down(places)
    table(rows)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GuestctlError as error:
        sys.exit(f"demo: {error}\n{getattr(error, 'console', '')}")
