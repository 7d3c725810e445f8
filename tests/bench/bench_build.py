"""`guestctl build` against the limit: the same components cross compiled on the host, with the same
`-j`, and where the time goes.

One guest at a time, so that nothing is hidden by what runs beside it. `compile` and `link` are what
the callers of those tools waited for, added up: with `-j` above one they overlap. `moving` is what
staging and collecting are of the wall time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from guestctl import Pool, image
from guestctl.builder.run import Builder
from guestctl.cli.build import make_builder
from guestctl.offload import read_ledger
from guestctl.places import Places
from guestctl.plan import ledger_path
from guestctl.toolchain import install

ARCH = "armv5l"
CROSS = "arm-linux-gnueabi"
FOLDER = Path(__file__).parent.parent.parent / "examples" / "definitions"
_TOOLS = f"CC={CROSS}-gcc AR={CROSS}-ar RANLIB={CROSS}-ranlib"
# The host's own pkg-config would tell of the host's own libraries.
_FLAGS = "PKG_CONFIG=true CPPFLAGS=-I{sysroot}/usr/include LDFLAGS=-L{sysroot}/usr/lib"
_TARGET = f"--build=x86_64-linux-gnu --host={CROSS} --prefix=/usr"
_CMAKE = (
    "cmake -S . -B _build -DCMAKE_INSTALL_PREFIX=/usr -DCMAKE_SYSTEM_NAME=Linux"
    f" -DCMAKE_C_COMPILER={CROSS}-gcc -DCMAKE_CXX_COMPILER={CROSS}-g++"
)


@dataclass(frozen=True)
class Cross:
    """How a component is cross compiled. What it needs has been installed below {sysroot}."""

    configure: str = ":"
    build: str = "make -j{jobs}"
    install: str = "make install DESTDIR={dest}"


_AUTOTOOLS = Cross(f"CONFIG_SHELL=/bin/sh ./configure {_TARGET} {_FLAGS}")
_WITH_CMAKE = Cross(
    _CMAKE, "cmake --build _build -j{jobs}", "DESTDIR={dest} cmake --install _build"
)
# In an order in which they can be built. Without the test steps: a host cannot run what it has
# cross compiled; and without what needs meson, which this host need not have.
HOST = {
    "zlib": Cross(f"{_TOOLS} ./configure --prefix=/usr"),
    "bzip2": Cross(
        build=f"make -j{{jobs}} {_TOOLS} libbz2.a bzip2 bzip2recover",
        install=f"make install {_TOOLS} PREFIX={{dest}}/usr",
    ),
    "ncurses": Cross(
        f"CONFIG_SHELL=/bin/sh cf_cv_ar_flags=-crvD ./configure {_TARGET} --with-shared"
        " --without-debug --without-ada --without-manpages --without-tests --disable-stripping"
        " --enable-widec"
    ),
    "readline": Cross(
        _AUTOTOOLS.configure + " --with-curses", "make -j{jobs} SHLIB_LIBS=-lncursesw"
    ),
    "lua": Cross(
        build=f"make -j{{jobs}} linux-readline CC={CROSS}-gcc AR='{CROSS}-ar rcu'"
        f" RANLIB={CROSS}-ranlib MYCFLAGS=-I{{sysroot}}/usr/include"
        " MYLDFLAGS=-L{sysroot}/usr/lib MYLIBS=-lncursesw",
        install="make install INSTALL_TOP={dest}/usr",
    ),
    "nano": Cross(
        _AUTOTOOLS.configure + " NCURSESW_CFLAGS=-DNCURSES_WIDECHAR NCURSESW_LIBS=-lncursesw"
    ),
    "hello": _AUTOTOOLS,
    "sed": _AUTOTOOLS,
    "patch": _AUTOTOOLS,
    "tinyxml2": _WITH_CMAKE,
    "fmtlib": Cross(
        f"{_CMAKE} -DFMT_TEST=OFF -DFMT_DOC=OFF", _WITH_CMAKE.build, _WITH_CMAKE.install
    ),
}
STEPS = ("stage", "prepare", "configure", "build", "install", "collect")
_TOOL_STEPS = ("compile", "link")
_TESTS = "test"


def on_host(tarball: Path, cross: Cross, jobs: int, sysroot: Path) -> dict[str, float]:
    """The seconds of each step on the host; what was installed is in `sysroot` then, too."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        seconds[step] = time.monotonic() - begin

    with tempfile.TemporaryDirectory() as folder:
        with timed("stage"):
            subprocess.run(["tar", "-xf", tarball, "-C", folder], check=True)
        (source,) = Path(folder).iterdir()
        dest = Path(folder) / "inst"
        places = {"dest": dest, "sysroot": sysroot, "jobs": jobs}
        commands = {
            "configure": cross.configure.format_map(places),
            "build": cross.build.format_map(places),
            "install": cross.install.format_map(places),
            "collect": f"tar -C {dest} -cf {folder}/out.tar .",
        }
        for step, line in commands.items():
            with timed(step):
                subprocess.run(
                    ["sh", "-ec", line], cwd=source, check=True, capture_output=True,
                    env={**os.environ, "LC_ALL": "C.UTF-8"},
                )  # fmt: skip
        shutil.copytree(dest, sysroot, symlinks=True, dirs_exist_ok=True)
    return seconds


def main() -> None:
    """`python -m tests.bench.bench_build NAME ...` measures some of them, and what they need."""
    places = Places.of_user()
    image.build(ARCH, cache_dir=places.cache)
    install(ARCH, cache_dir=places.cache)
    # The C library below them is built once; they themselves anew each time.
    os.environ.setdefault("XDG_DATA_HOME", str(places.cache / "bench"))
    builder = make_builder(FOLDER, ARCH)
    planner = builder.planner
    wanted = planner.needed(sys.argv[1:] or HOST)
    names = [name for name in HOST if name in wanted]
    builder.build(["sysroot"], lambda _work: Pool(ARCH, 2)).check()
    head = "".join(f"{step:>10}" for step in (*STEPS, "wall", "moving", "compile", "link"))
    print(f"{'seconds':<20}{head}")
    all_ours: Counter[str] = Counter()
    all_theirs: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as sysroot:
        for name in names:
            ours, tools, jobs = in_guest(builder, places, name)
            source = builder.sources.tarball(planner.components[name].chunk)
            theirs = on_host(source, HOST[name], jobs, Path(sysroot))
            _row(f"{name}, guest", ours, tools)
            _row(f"{name}, host -j{jobs}", theirs, {})
            all_ours.update({**ours, **tools})
            all_theirs.update(theirs)
    tools = {tool: all_ours.pop(tool) for tool in _TOOL_STEPS}
    _row("all, guest", all_ours, tools)
    _row("all, host", all_theirs, {})
    print(f"all: {all_ours.total() / all_theirs.total():.1f} times the cross builds", flush=True)


def in_guest(
    builder: Builder, places: Places, name: str
) -> tuple[dict[str, float], dict[str, float], int]:
    """Builds `name` anew: the seconds of its steps and of its tools, and the jobs it had."""
    builder.store.remove(builder.planner.key(name))
    with Pool(ARCH, 1) as pool:
        with pool.lease(timeout=120) as guest:
            jobs = guest.jobs
        build = builder.build([name], partial(_held, pool)).check()
        tools = dict.fromkeys(_TOOL_STEPS, 0.0)
        for entry in read_ledger(ledger_path(places, pool.name)):
            if entry.step in tools:
                tools[entry.step] += entry.seconds
    seconds = dict(build.artifacts[name].manifest["seconds"])
    seconds.pop(_TESTS, None)
    return seconds, tools, jobs


@contextmanager
def _held(pool: Pool, _work: int) -> Iterator[Pool]:
    yield pool


def _row(label: str, seconds: Mapping[str, float], tools: Mapping[str, float]) -> None:
    wall = sum(seconds.values())
    moved = 100 * (seconds["stage"] + seconds["collect"]) / wall
    cells = [*(seconds.get(step, 0.0) for step in STEPS), wall]
    text = "".join(f"{cell:10.2f}" for cell in cells)
    also = "".join(f"{cell:10.2f}" for cell in tools.values())
    print(f"{label:<20}{text}{moved:9.1f}%{also}", flush=True)


if __name__ == "__main__":
    main()
