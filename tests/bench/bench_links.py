"""stage --link against stage, of an artifact that the cache has: medians of alternating runs.

    python -m tests.bench.bench_links [ARCHIVE...] [--on FOLDER] [--runs N]
                                       [--security-model MODEL]

Without ARCHIVE two are made: one with sizes as in a sysroot, and one of small files, where almost
all of a stage is making inodes. A ratio of 5 is what is wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

from guestctl.translate import stage
from guestctl.vmeta import MAPPED_FILE
from tests.bench.bench_translate import small_files, spread, timed

__all__ = ["compare", "sysroot"]


def sysroot(path: Path, count: int = 3000) -> Path:
    """An archive with sizes as in a root file system: many small files, a few large ones."""
    chance = random.Random(11)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(count):
            info = tarfile.TarInfo(f"usr/d{number // 15}/file{number}")
            info.size = min(20_000_000, int(chance.lognormvariate(8.5, 2)))
            info.mtime = 1_600_000_000
            tar.addfile(info, BytesIO(chance.randbytes(info.size)))
    return path


def compare(archive: Path, place: Path, runs: int, model: str) -> dict[str, object]:
    """Trees are removed at the end only, and lie apart: bench_translate says why."""
    time.sleep(2.1)  # the sum of an archive is remembered when it is older than that
    first, _ = timed(
        lambda: stage(archive, place / f"{archive.name}.first", link=True, security_model=model)
    )
    times: dict[str, list[float]] = {"stage": [], "stage --link": []}
    for turn in range(runs):
        for name in sorted(times, reverse=bool(turn % 2)):
            tree, link = place / f"{archive.name}.{name}.{turn}", name != "stage"
            os.sync()
            begin = time.perf_counter()
            report = stage(archive, tree, link=link, security_model=model)
            times[name].append(time.perf_counter() - begin)
            assert not report.warnings
    middle = {name: statistics.median(rows) for name, rows in times.items()}
    return {
        "archive": archive.name,
        "entries": report.entries,
        "bytes": report.bytes,
        "first_seconds": round(first, 3),
        "seconds": {name: round(value, 3) for name, value in middle.items()},
        "best": {name: round(min(rows), 3) for name, rows in times.items()},
        "ratio": round(middle["stage"] / middle["stage --link"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", nargs="*", type=Path)
    parser.add_argument("--on", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--security-model", default=MAPPED_FILE)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.on) as folder:
        place = Path(folder)
        spread(place)
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")
        archives = given.archive or [
            sysroot(place / "sysroot.tar"),
            small_files(place / "small.tar"),
        ]
        found = [compare(archive, place, given.runs, given.security_model) for archive in archives]
    told = {"version": 1, "place": str(given.on), "model": given.security_model, "links": found}
    json.dump(told, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
