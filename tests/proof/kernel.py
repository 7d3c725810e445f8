"""The source of the image's kernel, and its cross build on the host: for proof_kernel."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from guestctl.packages import Archive
from guestctl.recipe import parse_lock
from tests.proof import ROOT

ARCH = "armv5l"
SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
CROSS = "arm-linux-gnueabi-"
JOBS = os.cpu_count() or 1
SLICE = int(os.environ.get("GUESTCTL_KERNEL_SLICE", "3600"))  # seconds
_TICK = 0.5
_STILL = 10.0  # a longer gap between two ticks is a host that stood still
STOPPED = (124, 130)  # as timeout has it, and make
CONFIGURE = "KCONFIG_ALLCONFIG=symbols allnoconfig"
WANTED = "Image versatile-pb.dtb"
# What is compiled once more, by each way that there is.
PART = "fs/ext4"
REMOVE = f"find {PART} -name '*.[oa]' -exec rm {{}} +; find {PART} -name '.*.cmd' -exec rm {{}} +"
ENV = {
    "KBUILD_BUILD_USER": "guestctl",
    "KBUILD_BUILD_HOST": "guestctl",
    "KBUILD_BUILD_VERSION": "1",
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "LC_ALL": "C.UTF-8",
}
# Of these folders no file is compiled for this kernel.
SKIPPED = (
    "Documentation/*.rst", "Documentation/*.txt", "Documentation/*.yaml", "Documentation/*.svg",
    "drivers/gpu/drm/*.[ch]", "drivers/infiniband/*.[ch]", "drivers/media/*.[ch]",
    "drivers/net/ethernet/*.[ch]", "drivers/net/wireless/*.[ch]", "drivers/staging/*.[ch]",
    "sound/*.[ch]", "tools/testing/*", "tools/perf/*", "arch/[b-z]*/*.[chS]",
)  # fmt: skip


class Stopwatch:
    """Seconds since it was made, but for those in which this process stood still."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._over = threading.Event()
        self._ticking = threading.Thread(target=self._tick, name="stopwatch", daemon=True)
        self._ticking.start()

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._ticking.join()

    def _tick(self) -> None:
        before = time.monotonic()
        while True:
            over = self._over.wait(_TICK)
            now = time.monotonic()
            self.seconds += min(now - before, _STILL)
            before = now
            if over:
                return


def processors_of_children() -> float:
    """Seconds of processors of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def processors_of(pid: int) -> float:
    """The same of a process that runs: proc(5), stat, utime and stime."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def unpack(folder: Path, cache: Path) -> None:
    """The source without what is never compiled: the folder `linux`, and an archive of it."""
    lock = ROOT / "images" / f"{ARCH}.lock"
    entries = [e for e in parse_lock(lock.read_text(), str(lock)) if e.group == "kernel"]
    (package,) = Archive(cache / "packages", suites=SUITES).fetch(entries).values()
    holder, source = folder / "deb", folder / "linux"
    for each in (holder, source):
        shutil.rmtree(each, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", package, holder], check=True)
    (tarball,) = holder.glob("usr/src/linux-source-*.tar.xz")
    source.mkdir()
    skipped = [f"--exclude=linux-source-*/{pattern}" for pattern in SKIPPED]
    command = ["tar", "-xJf", tarball, "-C", source, "--strip-components=1", "--wildcards"]
    subprocess.run([*command, *skipped], check=True)
    shutil.copyfile(ROOT / "images" / f"{ARCH}.config", source / "symbols")
    shutil.rmtree(holder)
    subprocess.run(["tar", "-C", folder, "-cf", folder / "linux.tar", "linux"], check=True)


def cross(folder: Path) -> dict[str, Any]:
    """Goes on with the cross build for a slice; says whether it is done, and what it took."""
    before = processors_of_children()
    script = f"[ -e .config ] || {_make(CONFIGURE)}; exec timeout -s INT {SLICE} {_make(WANTED)}"
    with Stopwatch() as watch:
        status = _run(folder, script)
    assert status in (0, *STOPPED), status
    used = processors_of_children() - before
    return {"done": status == 0, "seconds": watch.seconds, "processor": used}


def cross_part(folder: Path) -> None:
    """PART once more, with what make takes when nothing is to be done; then the tree goes."""

    def seconds() -> float:
        with Stopwatch() as watch:
            assert _run(folder, _make(f"{PART}/")) == 0
        return watch.seconds

    seconds()
    looking = seconds()
    assert _run(folder, REMOVE) == 0
    took = {"looking": looking, "seconds": seconds()}
    (folder / "part-cross.json").write_text(json.dumps(took))
    shutil.rmtree(folder / "linux")


def _make(words: str) -> str:
    return f"make -j{JOBS} ARCH=arm CROSS_COMPILE={CROSS} {words}"


def _run(folder: Path, script: str) -> int:
    with open(folder / "cross.log", "ab") as log:
        return subprocess.run(
            ["sh", "-ec", script], cwd=folder / "linux", env={**os.environ, **ENV},
            stdout=log, stderr=log, check=False,
        ).returncode  # fmt: skip
