"""Packages that are built in each of the ways there are: on the host by cross compiler, in a chroot
under qemu-user, in a guest by itself, with distcc, and with offload.

qemu-user runs the image's own root file system in namespaces of its own, with its interpreter
registered in them alone (binfmt_misc of a user namespace, Linux 6.7), so that no root is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from guestctl import Guest, image, stage
from guestctl.packages import Archive
from guestctl.packages.apt import host_architecture
from guestctl.places import Places
from guestctl.recipe import parse_lock

ARCH = "armv5l"
SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
CROSS = "arm-linux-gnueabi"
# How a pool is asked for each of the ways by a guest.
BY_GUEST = {"offload": "auto", "distcc": "distcc", "guest": "off"}
WAYS = ("cross", "qemu-user", "guest", "distcc", "offload")
_ROOT = Path(__file__).parent.parent.parent
_LOCKS = tuple(
    _ROOT / name
    for name in ("examples/demo.lock", "tests/proof/offload.lock", "tests/bench/large.lock")
)
_MOST = 3000  # seconds that a step may take
# For an ELF file of 32 bits for ARM, whatever its ABI.
_BINFMT = (
    r":arm:M::\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
    r":QEMU:FOC"
)


@dataclass(frozen=True)
class Package:
    """The steps of a build with native compilers, and of one with cross compilers. The last is
    what compiles."""

    source: str
    steps: tuple[str, ...]
    cross: tuple[str, ...]


_TOOLS = f"CC={CROSS}-gcc AR={CROSS}-ar RANLIB={CROSS}-ranlib"
PACKAGES = {
    "lua": Package(
        "lua5.4",
        ("make -s -j{jobs} linux",),
        (f"make -s -j{{jobs}} linux CC={CROSS}-gcc AR='{CROSS}-ar rcu' RANLIB={CROSS}-ranlib",),
    ),
    "hello": Package(
        "hello",
        ("./configure -q", "make -s -j{jobs}"),
        (f"./configure -q --host={CROSS}", "make -s -j{jobs}"),
    ),
    # Autoconf's own variable: without it, configure looks for a shell that knows $LINENO, which
    # Debian's dash does not, and runs itself again in bash.
    "hello-sh": Package(
        "hello",
        ("CONFIG_SHELL=/bin/sh ./configure -q", "make -s -j{jobs}"),
        (f"CONFIG_SHELL=/bin/sh ./configure -q --host={CROSS}", "make -s -j{jobs}"),
    ),
    "tinyxml2": Package(
        "tinyxml2",
        ("make -s -j{jobs} staticlib xmltest",),
        (f"make -s -j{{jobs}} CXX={CROSS}-g++ AR={CROSS}-ar staticlib xmltest",),
    ),
    "zlib": Package(
        "zlib",
        ("./configure >/dev/null", "make -s -j{jobs}"),
        (f"CHOST={CROSS} ./configure >/dev/null", "make -s -j{jobs}"),
    ),
    "bzip2": Package(
        "bzip2",
        ("make -s -j{jobs} libbz2.a bzip2 bzip2recover",),
        (f"make -s -j{{jobs}} {_TOOLS} libbz2.a bzip2 bzip2recover",),
    ),
    "mbedtls": Package(
        "mbedtls",
        ("make -s -C library -j{jobs} static",),
        (f"make -s -C library -j{{jobs}} {_TOOLS} static",),
    ),
    "libtomcrypt": Package(
        "libtomcrypt",
        ("make -s -j{jobs} libtomcrypt.a",),
        (f"make -s -j{{jobs}} {_TOOLS} libtomcrypt.a",),
    ),
    "libtommath": Package(
        "libtommath",
        ("make -s -j{jobs} libtommath.a",),
        (f"make -s -j{{jobs}} {_TOOLS} libtommath.a",),
    ),
    "bearssl": Package(
        "bearssl",
        ("make -s -j{jobs} lib",),
        (f"make -s -j{{jobs}} {_TOOLS} lib",),
    ),
}


def tarballs(names: Iterable[str], places: Places) -> dict[str, Path]:
    """The locked sources of packages."""
    wanted = {name: PACKAGES[name].source for name in names}
    entries = [
        entry
        for lock in _LOCKS
        for entry in parse_lock(lock.read_text(), str(lock))
        if entry.name in wanted.values()
    ]
    files = Archive(places.cache / "packages", suites=SUITES).fetch(entries)
    by_source = {entry.name: path for entry, path in files.items()}
    return {name: by_source[source] for name, source in wanted.items()}


def by_cross(name: str, tarball: Path, jobs: int) -> list[float]:
    """The seconds of each step on the host."""
    with tempfile.TemporaryDirectory() as folder:
        steps = [step.format(jobs=jobs) for step in PACKAGES[name].cross]
        return _timed(steps, _unpacked(tarball, Path(folder)))


def by_qemu_user(name: str, tarball: Path, places: Places, jobs: int) -> list[float]:
    """In the image's root file system, with the interpreter registered in our namespaces alone."""
    root = image.root_folder(image.load(ARCH, cache_dir=places.cache))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        source = _unpacked(tarball, folder)
        enter = folder / "enter"
        register = _BINFMT.replace("QEMU", str(_emulator(places)))
        enter.write_text(
            "set -e; mount -t binfmt_misc none /proc/sys/fs/binfmt_misc\n"
            f"echo '{register}' >/proc/sys/fs/binfmt_misc/register\n"
            f"exec bwrap --ro-bind {root} / --dev /dev --proc /proc --tmpfs /tmp"
            f" --bind {source} {source} --chdir {source} --setenv PATH /usr/bin:/bin"
            ' -- "$@"\n'
        )
        steps = [step.format(jobs=jobs) for step in PACKAGES[name].steps]
        return _timed(steps, source, ["unshare", "-Urm", "sh", str(enter)])


def in_guest(guest: Guest, name: str, tarball: Path) -> list[float]:
    """In a leased guest, whatever helps it."""
    with guest.mounted():
        guest.run(["rm", "-rf", f"/work/{name}"], timeout=_MOST).check()
    stage(tarball, guest.work, into=name)
    times = []
    with guest.mounted():
        for step in PACKAGES[name].steps:
            script = f"cd /work/{name}/*/; {step.format(jobs=guest.jobs)}"
            begin = time.monotonic()
            guest.run(["sh", "-ec", script], timeout=_MOST, env={"LC_ALL": "C.UTF-8"}).check()
            times.append(time.monotonic() - begin)
    return times


def _timed(steps: Sequence[str], folder: Path, prefix: Sequence[str] = ()) -> list[float]:
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    times = []
    for step in steps:
        begin = time.monotonic()
        command = [*prefix, "sh", "-ec", step]
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
        times.append(time.monotonic() - begin)
    return times


def _unpacked(tarball: Path, folder: Path) -> Path:
    subprocess.run(["tar", "-xf", tarball, "-C", folder], check=True)
    (source,) = folder.iterdir()
    return source


def _emulator(places: Places) -> Path:
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
