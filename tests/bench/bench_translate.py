"""stage and collect against `tar`: medians of alternating runs in one process, start-up apart.

    python -m tests.bench.bench_translate [ARCHIVE] [--on FOLDER] [--runs N]

Without ARCHIVE a tree of many small files is made. Prints one JSON object; ratios below the
limits of docs (stage and collect 1.2 on disk, 2 on tmpfs with small files) are what is wanted.
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


def compare(archive: Path, place: Path, runs: int) -> dict[str, object]:
    archive.read_bytes()  # warm
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
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
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


if __name__ == "__main__":
    main()
