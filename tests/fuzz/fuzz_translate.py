"""Bytes from anyone: metadata, archives, and trees; by atheris where it is there, else mutated.

    python -m tests.fuzz.fuzz_translate [--seconds N] [--seed N]

Whatever comes in, what goes out is a result or a GuestctlError of one line, and nothing appears
outside the tree. The corpus is made from tests/corpus.py and the files in tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from guestctl.errors import GuestctlError
from guestctl.translate import Limits, check, collect, repair, stage
from guestctl.vmeta import decode_text, decode_xattrs
from tests.corpus import every_type, tar_bytes

__all__ = ["run", "seeds", "try_bytes"]

_LIMITS = Limits(entries=2000, bytes=8 << 20, depth=40, ratio=50)
CORPUS = Path(__file__).parent / "corpus"


def seeds() -> list[bytes]:
    whole = tar_bytes(every_type())
    first = [whole, whole[: len(whole) // 2], b"virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=33188\n"]
    return first + [path.read_bytes() for path in sorted(CORPUS.iterdir()) if path.is_file()]


def _quietly(work: Callable[[], object]) -> None:
    try:
        work()
    except GuestctlError as error:
        assert "\n" not in str(error), error


def try_bytes(data: bytes, place: Path) -> None:
    """One input, as metadata text, as an archive, and as the metadata of a tree's entries."""
    decode_text(data[:4096])
    decode_xattrs({b"user.virtfs.mode": data[:4], b"user.virtfs.rdev": data[4:12]})
    tree = place / "tree"
    _quietly(lambda: stage(io.BytesIO(data), tree, limits=_LIMITS))
    _quietly(lambda: collect(tree, io.BytesIO()))
    shutil.rmtree(tree, ignore_errors=True)
    (tree / ".virtfs_metadata").mkdir(parents=True)
    for number in range(3):
        (tree / f"f{number}").write_bytes(data[number : 40 + number])
        (tree / ".virtfs_metadata" / f"f{number}").write_bytes(data[number * 64 : number * 64 + 99])
    _quietly(lambda: collect(tree, io.BytesIO()))
    _quietly(lambda: check(tree))
    _quietly(lambda: repair(tree))
    _quietly(lambda: collect(tree, io.BytesIO()))
    shutil.rmtree(tree)
    assert not os.listdir(place), "something appeared outside of the tree"


def _mutated(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.randrange(1, 8)):
        at = chance.randrange(len(out)) if out else 0
        kind = chance.randrange(6)
        if kind < 3 and out:
            out[at] = chance.randrange(256)
        elif kind == 3:
            del out[at : at + chance.choice((1, 100, 512, 1024))]
        elif kind == 4:
            start = chance.randrange(0, max(1, len(out)), 512)
            out[at:at] = out[start : start + 512]
        else:
            out[at:at] = chance.choice(
                (b"../", b"/", b"\0", b".virtfs_metadata", b"9" * 11, b"\xff" * 8, b"GNU.sparse.")
            )
    # Right checksums here and there: else most headers would be dropped unread.
    for start in range(0, len(out) - 511, 512):
        if chance.random() < 0.7 and out[start + 257 : start + 262] == b"ustar":
            out[start + 148 : start + 156] = b"        "
            out[start + 148 : start + 156] = b"%06o\0 " % sum(out[start : start + 512])
    return bytes(out)


def run(seconds: float, seed: int) -> int:
    """Mutates the corpus for so long; returns how many inputs were tried."""
    chance = random.Random(seed)
    pool = seeds()
    end = time.monotonic() + seconds
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            data = _mutated(chance.choice(pool), chance)
            try:
                try_bytes(data, Path(folder))
            except Exception:
                CORPUS.joinpath(f"found-{seed}-{count}").write_bytes(data)
                raise
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    try:
        import atheris
    except ImportError:
        sys.stdout.write(f"{run(given.seconds, given.seed)} inputs, mutated\n")
        return
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as pool:
        for number, data in enumerate(seeds()):
            Path(pool, str(number)).write_bytes(data)
        atheris.instrument_all()
        argv = [sys.argv[0], f"-max_total_time={int(given.seconds)}", "-max_len=40000", pool]
        atheris.Setup(argv, lambda data: try_bytes(data, Path(folder)))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
