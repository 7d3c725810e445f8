"""Staged copies share their blocks where the file system can: XFS and btrfs, in image files.

Mounting them is for root: this one runs as root, or with `sudo` that asks for nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from guestctl import collect, stage
from guestctl.translate import check
from tests.proof import NotHere, Proof

TITLE = "Staged copies share their blocks where they can"
SYSTEMS = {
    "XFS": ("mkfs.xfs", "-q", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q"),
}
SIZE = 1 << 30
LARGE = 1 << 16  # smaller files are copied: that is quicker than to share them
FS_IOC_FIEMAP = 0xC020660B
EXTENTS = 256
SYNC, SHARED = 1, 0x2000


def shared(path: Path) -> tuple[int, int]:
    """How many bytes of a file's extents are shared with another file, and how many there are."""
    asked = struct.pack("=QQLLLL", 0, 2**64 - 1, SYNC, 0, EXTENTS, 0)
    told = bytearray(asked + bytes(56 * EXTENTS))
    with path.open("rb") as file:
        fcntl.ioctl(file, FS_IOC_FIEMAP, told)
    count = struct.unpack_from("=L", told, 20)[0]
    rows = [struct.unpack_from("=QQQ16xL", told, 32 + 56 * row) for row in range(count)]
    return sum(row[2] for row in rows if row[3] & SHARED), sum(row[2] for row in rows)


def files(top: Path) -> list[Path]:
    return [path for path in sorted(top.rglob("*")) if path.is_file()]


def fill(source: Path) -> None:
    """Sizes that end within a block, small files, and one with holes."""
    chance = random.Random(3)
    for number in range(60):
        folder = source / f"d{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"large{number}").write_bytes(chance.randbytes(chance.randrange(LARGE, 8 << 20)))
        for small in range(10):
            (folder / f"small{number}.{small}").write_bytes(chance.randbytes(number * small))
    with (source / "holes").open("wb") as out:
        for at in range(0, 64 << 20, 8 << 20):
            os.pwrite(out.fileno(), chance.randbytes(1 << 20), at)
        out.truncate(64 << 20)


def used(place: Path) -> int:
    subprocess.run(["sync", "-f", place], check=True)
    now = os.statvfs(place)
    return (now.f_blocks - now.f_bfree) * now.f_frsize


@contextlib.contextmanager
def mounted(folder: Path, root: list[str], make: tuple[str, ...]) -> Iterator[Path]:
    image, place = folder / "image", folder / "mounted"
    with image.open("wb") as out:
        out.truncate(SIZE)
    place.mkdir(exist_ok=True)
    subprocess.run([*make, image], check=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    subprocess.run([*root, "mount", "-o", "loop", image, place], check=True)
    try:
        owner = f"{os.getuid()}:{os.getgid()}"
        subprocess.run([*root, "chown", owner, place], check=True)
        yield place
    finally:
        subprocess.run([*root, "umount", place], check=True)
        image.unlink()


def prove(proof: Proof) -> None:
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if subprocess.run([*root, "true"], check=False, capture_output=True).returncode:
        raise NotHere("it mounts file systems, and nobody is root here")
    for name, make in SYSTEMS.items():
        if not shutil.which(make[0], path="/usr/sbin:/sbin"):
            raise NotHere(f"there is no {make[0]}")
        with mounted(proof.folder, root, make) as place:
            on(proof, name, place)


def on(proof: Proof, name: str, place: Path) -> None:
    source, tree = place / "source", place / "tree"
    source.mkdir()
    fill(source)
    size = sum(path.stat().st_blocks * 512 for path in files(source))
    before = used(place)
    stage(source, tree)
    grown = used(place) - before
    assert not check(tree)
    whole = part = count = 0
    for path in files(source):
        copy = tree / path.relative_to(source)
        assert copy.read_bytes() == path.read_bytes()
        if path.stat().st_size >= LARGE and path.name != "holes":
            one, both = shared(copy)
            part, whole, count = part + one, whole + both, count + 1
    proof.fact(f"{name}: the source takes, MiB", size >> 20)
    proof.fact(f"{name}: the file system grew by staging it, MiB", f"{grown / (1 << 20):.1f}")
    proof.fact(f"{name}: files of 64 KiB and more, but those with holes", count)
    proof.fact(
        f"{name}: of their blocks in the tree, shared with the source", f"{part / whole:.0%}"
    )
    assert part == whole
    # A guest writes to its copy.
    large = next(path for path in files(source) if path.name.startswith("large"))
    old = large.read_bytes()
    with (tree / large.relative_to(source)).open("r+b") as out:
        out.write(b"changed by a guest")
    assert large.read_bytes() == old
    proof.fact(f"{name}: the source after a write to the tree", "unchanged")
    again = place / "again.tar"
    collect(tree, again)
    with io.BytesIO() as out:
        collect(tree, out)
        assert out.getvalue() == again.read_bytes()
    shutil.rmtree(tree)
    before = used(place)
    stage(again, tree)
    copies = [path for path in files(tree) if path.stat().st_size >= LARGE]
    some = sum(1 for path in copies if shared(path)[0])
    proof.fact(
        f"{name}: of files staged from a tar, those that share blocks with it",
        f"{some} of {len(copies)}",
    )
