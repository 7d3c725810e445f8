"""stage and collect against `tar`: medians of alternating runs in one process, start-up apart.

    python -m tests.bench.bench_translate [ARCHIVE] [--on FOLDER] [--runs N]

Without ARCHIVE a tree of many small files is made. Prints one JSON object; ratios below the
limits of docs (stage and collect 1.2 on disk, 2 on tmpfs with small files) are what is wanted.
Exit status 1: memory is over its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from guestctl.translate import collect, stage

__all__ = ["compare", "small_files"]

MEMORY_MAX = 100  # MiB, companions included, whatever the size


def small_files(path: Path, count: int = 10_000) -> Path:
    """An archive of many small files, as of a source tree."""
    chance = random.Random(7)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(count):
            if number % 20 == 0:
                folder = tarfile.TarInfo(f"d{number // 400}/d{number // 20}")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(folder)
            info = tarfile.TarInfo(f"d{number // 400}/d{number // 20}/file{number}.c")
            data = chance.randbytes(chance.randrange(200, 6000))
            info.size, info.mtime = len(data), 1_600_000_000
            tar.addfile(info, BytesIO(data))
    return path


def tar(*argv: object) -> None:
    subprocess.run(["tar", *map(str, argv)], check=True)


def timed(work: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """Wall clock, and processor time of this process and of its children."""
    os.sync()
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    start = time.perf_counter()
    work(*arguments)
    wall = time.perf_counter() - start
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(
        a.ru_utime + a.ru_stime - b.ru_utime - b.ru_stime
        for a, b in zip(after, before, strict=True)
    )
    return wall, cpu


def memory_mib(function: str, *arguments: object) -> int:
    """The most that a fresh process and its companion take at one time, in MiB, looked at often.

    What both share counts once (the kernel's proportional set size).
    """
    code = f"import sys; from guestctl.translate import collect, stage; {function}(*sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])
    most = 0
    while process.poll() is None:
        most = max(most, taken_kib(process.pid))
        time.sleep(0.005)
    assert not process.returncode
    return most // 1024


def taken_kib(pid: int) -> int:
    """What a process and those that it started take; 0 once it is gone."""
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    own = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return own + sum(taken_kib(int(child)) for child in below)


def memory(archive: Path, place: Path) -> dict[str, int]:
    """The memory of stage, and of collect to every kind of archive, which is then staged."""
    tree = place / "memory"
    found = {"stage": memory_mib("stage", archive, tree)}
    for ending in ("tar", "tar.gz", "tar.xz", "tar.zst"):
        out = place / f"memory.{ending}"
        found[f"collect {ending}"] = memory_mib("collect", tree, out)
        if ending != "tar":
            found[f"stage {ending}"] = memory_mib("stage", out, place / f"from {ending}")
        out.unlink()
    return found


def compare(archive: Path, place: Path, runs: int) -> dict[str, object]:
    with archive.open("rb") as plain:  # warm, without holding it
        while plain.read(1 << 20):
            pass
    out = place / "out.tar"
    times: dict[str, list[tuple[float, float]]] = {}
    for turn in range(runs):
        # Trees anew each time, removed at the end: ext4 without a journal looks for inodes that
        # were not freed within the last minute, which would be most of what is measured.
        theirs, ours = place / f"theirs{turn}", place / f"ours{turn}"
        theirs.mkdir()
        works: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
            "tar -xf": (tar, ("-xf", archive, "-C", theirs)),
            "stage": (stage, (archive, ours)),
            "tar -cf": (tar, ("-cf", out, "-C", theirs, ".")),
            "collect": (collect, (ours, out)),
        }
        order = list(works) if turn % 2 else ["stage", "tar -xf", "collect", "tar -cf"]
        for name in order:
            out.unlink(missing_ok=True)
            work, arguments = works[name]
            times.setdefault(name, []).append(timed(work, *arguments))
    middle = {name: statistics.median(wall for wall, _ in rows) for name, rows in times.items()}
    cpu = {name: statistics.median(used for _, used in rows) for name, rows in times.items()}
    out.unlink()
    return {
        "archive": archive.name,
        "bytes": archive.stat().st_size,
        "place": str(place.parent),
        "seconds": {name: round(value, 3) for name, value in middle.items()},
        "best": {name: round(min(w for w, _ in rows), 3) for name, rows in times.items()},
        "cpu_seconds": {name: round(value, 3) for name, value in cpu.items()},
        "stage_ratio": round(middle["stage"] / middle["tar -xf"], 2),
        "collect_ratio": round(middle["collect"] / middle["tar -cf"], 2),
        "memory_mib": memory(archive, place),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", nargs="?", type=Path)
    parser.add_argument("--on", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.on) as folder:
        place = Path(folder)
        archive = given.archive or small_files(place / "small.tar")
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import guestctl.translate"], check=True)
        start_up = time.perf_counter() - begin
        found = compare(archive, place, given.runs)
    json.dump({"version": 1, "start_up": round(start_up, 3), **found}, sys.stdout, indent=2)
    sys.stdout.write("\n")
    taken: dict[str, int] = found["memory_mib"]  # type: ignore[assignment]
    if too_much := {name: mib for name, mib in taken.items() if mib >= MEMORY_MAX}:
        sys.exit(f"more than {MEMORY_MAX} MiB: {too_much}")


if __name__ == "__main__":
    main()
