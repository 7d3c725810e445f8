"""`guestctl build` against the limit: the same components cross compiled on the host, with the same
`-j`, and where the time goes.

One guest at a time, so that nothing is hidden by what runs beside it. `compile` and `link` are what
the callers of those tools waited for, added up: with `-j` above one they overlap. `moving` is what
staging and collecting are of the wall time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from guestctl import Pool, image
from guestctl.cli.build import make_builder
from guestctl.offload import read_ledger
from guestctl.places import Places
from guestctl.plan import ledger_path
from guestctl.toolchain import install

ARCH = "armv5l"
CROSS = "arm-linux-gnueabi"
FOLDER = Path(__file__).parent.parent.parent / "examples" / "definitions"
# Without the test steps: a host cannot run what it has cross compiled.
HOST = {
    "zlib": (f"CC={CROSS}-gcc AR={CROSS}-ar RANLIB={CROSS}-ranlib ./configure --prefix=/usr",),
    "hello": (f"./configure --build=x86_64-linux-gnu --host={CROSS} --prefix=/usr",),
}
STEPS = ("stage", "prepare", "configure", "build", "install", "collect")
_TESTS = "test"


def on_host(tarball: Path, configure: tuple[str, ...], jobs: int) -> dict[str, float]:
    """The seconds of each step on the host."""
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
        commands = {
            "configure": configure,
            "build": (f"make -j{jobs}",),
            "install": (f"make install DESTDIR={folder}/inst",),
            "collect": (f"tar -C {folder}/inst -cf {folder}/out.tar .",),
        }
        for step, lines in commands.items():
            with timed(step):
                for line in lines:
                    subprocess.run(
                        ["sh", "-ec", line], cwd=source, check=True, capture_output=True,
                        env={**os.environ, "LC_ALL": "C.UTF-8"},
                    )  # fmt: skip
    return seconds


def main() -> None:
    """`python -m tests.bench.bench_build NAME ...` measures some of them only."""
    names = sys.argv[1:] or list(HOST)
    places = Places.of_user()
    image.build(ARCH, cache_dir=places.cache)
    install(ARCH, cache_dir=places.cache)
    # The C library below them is built once; they themselves anew each time.
    os.environ.setdefault("XDG_DATA_HOME", str(places.cache / "bench"))
    builder = make_builder(FOLDER, ARCH)
    planner = builder.planner
    builder.build(["sysroot"], lambda _work: Pool(ARCH, 2)).check()
    head = "".join(f"{step:>10}" for step in (*STEPS, "wall", "moving", "compile", "link"))
    print(f"{'seconds':<16}{head}")
    for name in names:
        builder.store.remove(planner.key(name))
        with Pool(ARCH, 1) as pool:
            with pool.lease(timeout=120) as guest:
                jobs = guest.jobs
            build = builder.build([name], partial(_held, pool)).check()
            tools = {"compile": 0.0, "link": 0.0}
            for entry in read_ledger(ledger_path(places, pool.name)):
                if entry.step in tools:
                    tools[entry.step] += entry.seconds
        ours = dict(build.artifacts[name].manifest["seconds"])
        ours.pop(_TESTS, None)
        chunk = planner.components[name].chunk
        theirs = on_host(builder.sources.tarball(chunk), HOST[name], jobs)
        _row(f"{name}, guest", ours, tools)
        _row(f"{name}, host -j{jobs}", theirs, {})
        ratio = sum(ours.values()) / sum(theirs.values())
        print(f"{name}: {ratio:.1f} times the cross build", flush=True)


@contextmanager
def _held(pool: Pool, _work: int) -> Iterator[Pool]:
    yield pool


def _row(label: str, seconds: dict[str, float], tools: dict[str, float]) -> None:
    wall = sum(seconds.values())
    moved = 100 * (seconds["stage"] + seconds["collect"]) / wall
    cells = [*(seconds.get(step, 0.0) for step in STEPS), wall]
    text = "".join(f"{cell:10.2f}" for cell in cells)
    also = "".join(f"{cell:10.2f}" for cell in tools.values())
    print(f"{label:<16}{text}{moved:9.1f}%{also}")


if __name__ == "__main__":
    main()
