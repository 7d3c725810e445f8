"""stage and collect against `tar`: medians of alternating runs in one process, start-up apart.

    python -m tests.bench.bench_translate [ARCHIVE] [--on FOLDER] [--runs N]
                                           [--user NAME] [--remove] [--times-only]

Without ARCHIVE a tree of many small files is made. Prints one JSON object; ratios below the
limits of docs (stage and collect 1.2 on disk, 2 on tmpfs with small files) are what is wanted.
Collecting ends with an `fsync`, which tar leaves out: it is measured with and without.
As root, with `--user`: tar is root's, who sets owners and modes, and the translator that user's.
Exit status 1: memory is over its bound.
"""

from __future__ import annotations

import argparse
import array
import fcntl
import json
import os
import pwd
import random
import resource
import shutil
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

# FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_TOPDIR_FL of linux/fs.h, for 64 bits.
_GETFLAGS, _SETFLAGS, _TOPDIR = 0x80086601, 0x40086602, 0x00020000
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


def spread(place: Path) -> None:
    """Has ext4 put each folder of `place` into a block group of its own, away from the others.

    Without a journal it does not reuse an inode that was freed in the last minute or so, and looks
    at each such before it makes a file: where others had removed their trees, tar took half a
    millisecond of a processor for each entry, and the translator as much for each of its two.
    """
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    flags = array.array("i", [0])
    try:
        fcntl.ioctl(fd, _GETFLAGS, flags)
        flags[0] |= _TOPDIR
        fcntl.ioctl(fd, _SETFLAGS, flags)
    except OSError:
        pass  # another file system
    finally:
        os.close(fd)


def tar(*argv: object) -> None:
    subprocess.run(["tar", *map(str, argv)], check=True)


def tar_flushed(out: Path, tree: Path) -> None:
    """`tar -cf`, and what it has written on the disk, as an archive that was collected is."""
    tar("-cf", out, "-C", tree, ".")
    fd = os.open(out, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


def timed_as(user: str, work: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """The same in a process of the user of that name, or in this one without a name."""
    if not user:
        return timed(work, *arguments)
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        try:
            _become(user)
            os.write(sink, json.dumps(timed(work, *arguments)).encode())
        finally:
            os._exit(0)
    os.close(sink)
    with open(source, "rb") as told:
        wall, cpu = json.loads(told.read())
    os.waitpid(child, 0)
    return wall, cpu


def _become(name: str) -> None:
    known = pwd.getpwnam(name)
    os.initgroups(name, known.pw_gid)
    os.setgid(known.pw_gid)
    os.setuid(known.pw_uid)


def memory_mib(user: str, function: str, *arguments: object) -> int:
    """The most that a fresh process and its companion take at one time, in MiB, looked at often.

    What both share counts once (the kernel's proportional set size).
    """
    code = f"import sys; from guestctl.translate import collect, stage; {function}(*sys.argv[1:])"
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(argv, user=user or None)
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


def memory(archive: Path, place: Path, user: str) -> dict[str, int]:
    """The memory of stage, and of collect to every kind of archive, which is then staged."""
    tree = place / "memory"
    found = {"stage": memory_mib(user, "stage", archive, tree)}
    for ending in ("tar", "tar.gz", "tar.xz", "tar.zst"):
        out = place / f"memory.{ending}"
        found[f"collect {ending}"] = memory_mib(user, "collect", tree, out)
        if ending != "tar":
            found[f"stage {ending}"] = memory_mib(user, "stage", out, place / f"from {ending}")
        out.unlink()
    return found


def compare(
    archive: Path, place: Path, runs: int, user: str = "", *, remove: bool = False
) -> dict[str, object]:
    with archive.open("rb") as plain:  # warm, without holding it
        while plain.read(1 << 20):
            pass
    out = place / "out.tar"
    times: dict[str, list[tuple[float, float]]] = {}
    for turn in range(runs):
        # Trees anew each time, removed at the end if not told otherwise: see `spread`.
        theirs, ours = place / f"theirs{turn}", place / f"ours{turn}"
        theirs.mkdir()
        works: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
            "tar -xf": (tar, ("-xf", archive, "-C", theirs)),
            "stage": (stage, (archive, ours)),
            "tar -cf": (tar, ("-cf", out, "-C", theirs, ".")),
            "tar -cf, fsync": (tar_flushed, (out, theirs)),
            "collect": (collect, (ours, out)),
        }
        order = list(works) if turn % 2 else ["stage", "tar -xf", *list(works)[:1:-1]]
        for name in order:
            out.unlink(missing_ok=True)
            work, arguments = works[name]
            whose = "" if work in (tar, tar_flushed) else user
            times.setdefault(name, []).append(timed_as(whose, work, *arguments))
        for tree in (theirs, ours) if remove else ():
            shutil.rmtree(tree)
    middle = {name: statistics.median(wall for wall, _ in rows) for name, rows in times.items()}
    cpu = {name: statistics.median(used for _, used in rows) for name, rows in times.items()}
    out.unlink()
    return {
        "archive": archive.name,
        "bytes": archive.stat().st_size,
        "place": str(place.parent),
        "tar is root's": os.geteuid() == 0,
        "seconds": {name: round(value, 3) for name, value in middle.items()},
        "best": {name: round(min(w for w, _ in rows), 3) for name, rows in times.items()},
        "cpu_seconds": {name: round(value, 3) for name, value in cpu.items()},
        "stage_ratio": round(middle["stage"] / middle["tar -xf"], 2),
        "collect_ratio": round(middle["collect"] / middle["tar -cf"], 2),
        "collect_ratio_flushed": round(middle["collect"] / middle["tar -cf, fsync"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", nargs="?", type=Path)
    parser.add_argument("--on", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--user", default="", help="whose the translator's work is, for root")
    parser.add_argument("--remove", action="store_true", help="trees each turn: with a journal")
    parser.add_argument("--times-only", action="store_true", help="leave memory out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.on) as folder:
        place = Path(folder)
        spread(place)
        if given.user:
            shutil.chown(place, given.user)
        archive = given.archive or small_files(place / "small.tar")
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import guestctl.translate"], check=True)
        start_up = time.perf_counter() - begin
        found = compare(archive, place, given.runs, given.user, remove=given.remove)
        taken = {} if given.times_only else memory(archive, place, given.user)
    json.dump(
        {"version": 1, "start_up": round(start_up, 3), **found, "memory_mib": taken},
        sys.stdout,
        indent=2,
    )
    sys.stdout.write("\n")
    if too_much := {name: mib for name, mib in taken.items() if mib >= MEMORY_MAX}:
        sys.exit(f"more than {MEMORY_MAX} MiB: {too_much}")


if __name__ == "__main__":
    main()
