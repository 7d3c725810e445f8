"""Bytes from anyone: metadata, archives, and trees, by atheris.

    python -m tests.fuzz.fuzz_translate [--seconds N] [--add] vmeta|archive|tree

Whatever comes in, what goes out is a result or a GuestctlError of one line, nothing appears outside
the tree, and what was taken survives the way there and back. Seeds are made from tests/corpus.py,
and from tests/fuzz/corpus, where `--add` leaves what reached new code, and a failure its input.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

from guestctl.errors import GuestctlError
from guestctl.translate import Limits, check, collect, is_partial, list_tree, repair, stage
from guestctl.vmeta import decode_text, decode_xattrs, encode_text, encode_xattrs
from tests.corpus import (
    Member,
    cpio_newc,
    directory,
    every_type,
    hardlink,
    members,
    symlink,
    tar_bytes,
)

__all__ = ["CORPUS", "TARGETS", "seeds", "try_bytes"]

CORPUS = Path(__file__).parent / "corpus"
_LIMITS = Limits(entries=2000, bytes=8 << 20, depth=40, ratio=50)
_MODELS = ("mapped-file", "mapped-xattr")
_NAMES = (b"a", b"b", b"c", b"d", b".virtfs_metadata", b".virtfs_metadata_root", b"\xff\n", b"a")
_TEXTS = (
    b"virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=33188\n",
    b"virtfs.uid=-2\nvirtfs.gid=0\nvirtfs.mode=41471\n",
    b"virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=16877\n",
    b"virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=8576\nvirtfs.rdev=-1048065\n",
    b"virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=49645\nvirtfs.rdev=0\n",
    b"virtfs.mode=420\n",
    b"state=partial\n",
)


def _quietly(work: Callable[[], object]) -> bool:
    """Whether it was done; if not, the refusal is of the right kind."""
    try:
        work()
    except GuestctlError as error:
        assert "\n" not in str(error), error
        return False
    return True


def vmeta(data: bytes, _place: Path) -> None:
    """Text and xattrs as metadata; what is complete is written as it was read."""
    text = data[:4096]
    meta = decode_text(text)
    attributes = {b"user.virtfs.mode": data[:4], b"user.virtfs.rdev": data[4:12]}
    decode_xattrs({**attributes, b"user.virtfs.uid": data[12:16], b"user.virtfs.gid": data[16:20]})
    if meta.uid is None or meta.gid is None or meta.mode is None:
        return
    with contextlib.suppress(ValueError):
        written = encode_text(meta.uid, meta.gid, meta.mode, meta.rdev)
        assert decode_text(written) == meta
        pairs = encode_xattrs(meta.uid, meta.gid, meta.mode, meta.rdev)
        assert decode_xattrs(dict(pairs)) == meta


def archive(data: bytes, place: Path) -> None:
    """An archive, staged and collected; the second trip gives the same."""
    tree = place / "tree"
    model = _MODELS[len(data) // 512 % 2]
    source = io.BytesIO(data)
    if not _quietly(lambda: stage(source, tree, limits=_LIMITS, security_model=model)):
        assert not tree.exists() or is_partial(tree)
        return
    first, second = io.BytesIO(), io.BytesIO()
    collect(tree, first)
    problems = check(tree)
    assert not problems, problems
    stage(io.BytesIO(first.getvalue()), tree)
    collect(tree, second)
    assert members(second.getvalue()) == members(first.getvalue())


def _write(path: bytes, data: bytes, size: int | None = None) -> None:
    """Neither through a link that was laid, nor into a fifo for ever."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(path, flags, 0o600), "wb") as out:
        out.write(data)
        if size is not None:
            out.truncate(size)


def _laid(data: bytes, root: Path) -> None:
    """A tree by a program of four bytes a step: what, where, and two for its content."""
    here = root
    for at in range(0, min(len(data) - 3, 160), 4):
        what, name, first, second = data[at : at + 4]
        path = os.path.join(os.fsencode(here), _NAMES[name % len(_NAMES)])
        with contextlib.suppress(OSError):
            match what % 12:
                case 0 | 1:
                    _write(path, data[at : at + first], second << (first % 12))
                case 2 | 3:
                    _write(path, _TEXTS[first % len(_TEXTS)][: second or None])
                case 4 | 5:
                    os.mkdir(path)
                    here = Path(os.fsdecode(path))
                case 6:
                    here = here.parent if here != root else root
                case 7:
                    os.symlink((b"..", b"a", b"/etc", b"b/c")[first % 4], path)
                case 8:
                    os.mkfifo(path)
                case 9:
                    other = _NAMES[first % len(_NAMES)]
                    os.link(os.path.join(os.fsencode(here), other), path, follow_symlinks=False)
                case 10:
                    keys = ("uid", "gid", "mode", "rdev", "guestctl.state", "guestctl.aside.user.x")
                    key = f"user.virtfs.{keys[first % 6]}"
                    os.setxattr(path, key, data[at : at + second % 12], follow_symlinks=False)
                case _ if not os.path.islink(path):
                    os.chmod(path, first)


def tree(data: bytes, place: Path) -> None:
    """A tree of oddities, looked at and mended; what is mended can be collected."""
    root = place / "tree"
    root.mkdir()
    _laid(data, root)
    _quietly(lambda: collect(root, io.BytesIO()))
    _quietly(lambda: list(list_tree(root)))
    _quietly(lambda: check(root))
    mended: list[bool] = []
    _quietly(lambda: mended.extend(problem.mended for problem in repair(root)))
    if mended and all(mended):
        assert not check(root), check(root)
        collect(root, io.BytesIO())


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "archive": archive,
    "tree": tree,
    "vmeta": vmeta,
}


def seeds(target: str) -> list[bytes]:
    whole = tar_bytes(every_type())
    small = [
        directory("d"),
        Member("d/f", data=b"x" * 600),
        hardlink("l", "d/f"),
        symlink("s", "d"),
    ]
    sparse = tuple(
        (f"GNU.sparse.{key}", value)
        for key, value in (("major", "1"), ("minor", "0"), ("name", "h"), ("realsize", "9000"))
    )
    made = {
        "archive": [
            tar_bytes(small),
            tar_bytes([Member("x", data=b"1\n4096\n4\n".ljust(512, b"\0") + b"data", pax=sparse)]),
            tar_bytes([Member("f", pax=(("SCHILY.xattr.user.a", "b"), ("mtime", "-1.5")))]),
            cpio_newc(("a", 0o100755, 7, 2, b""), ("b", 0o100755, 7, 2, b"content")),
            cpio_newc(
                ("s", 0o120777, 7, 2, b"x"),
                ("t", 0o120777, 7, 2, b"x"),
                ("p", 0o010644, 8, 2, b""),
                ("q", 0o010644, 8, 2, b""),
                ("d", 0o040755, 9, 2, b""),
                ("d/n", 0o060644, 10, 1, b""),
            ),
            whole,
        ],
        "tree": [bytes(range(160)), bytes((4, 0, 0, 0, 0, 1, 9, 9, 2, 4, 0, 0)) * 5, b"\2\4" * 30],
        "vmeta": list(_TEXTS),
    }[target]
    return made + [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]


def try_bytes(target: str, data: bytes, place: Path) -> None:
    try:
        TARGETS[target](data, place)
        assert set(os.listdir(place)) <= {"tree"}, "something appeared outside of the tree"
    finally:
        _remove(place / "tree")


def _remove(path: Path) -> None:
    """Removes a tree whatever its modes."""
    if path.exists():
        os.chmod(path, 0o700)
        for folder, below, _ in os.walk(path):
            for name in below:
                if not os.path.islink(os.path.join(folder, name)):
                    os.chmod(os.path.join(folder, name), 0o700)
        shutil.rmtree(path)


def _fixed(data: bytes) -> bytes:
    """Right checksums in what looks like tar: else most headers would be dropped unread."""
    out = bytearray(data)
    for start in range(0, len(out) - 511, 512):
        if out[start + 257 : start + 262] == b"ustar":
            out[start + 148 : start + 156] = b"        "
            out[start + 148 : start + 156] = b"%06o\0 " % sum(out[start : start + 512])
    return bytes(out)


def main() -> None:
    import atheris

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1, help="stop after so many")
    parser.add_argument("--add", action="store_true")
    given = parser.parse_args()
    kept = CORPUS / given.target
    kept.mkdir(parents=True, exist_ok=True)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as place, tempfile.TemporaryDirectory() as found:
        for number, data in enumerate(seeds(given.target)):
            Path(found, str(number)).write_bytes(data)

        def mutate(data: bytes, size: int, seed: int) -> bytes:
            changed = atheris.Mutate(data, size)
            return _fixed(changed) if seed % 4 else changed

        options = [
            f"-max_total_time={given.seconds}",
            f"-runs={given.runs}",
            "-max_len=12000",
            # For what hangs, however little of a processor is left for it.
            "-timeout=60",
            "-close_fd_mask=0",
        ]
        options += [f"-artifact_prefix={kept}/found-", "-print_final_stats=1", "-rss_limit_mb=2000"]
        # libFuzzer ends its process by itself: the folders are its parent's to remove.
        child = os.fork()
        if child:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        # Ours alone: all that Python has loaded would take longer than the fuzzing.
        for known in gc.get_objects():
            if isinstance(known, FunctionType) and str(known.__module__).startswith("guestctl."):
                atheris.instrument_func(known)
        atheris.Setup(
            [sys.argv[0], *options, str(kept) if given.add else found, found],
            lambda data: try_bytes(given.target, data, Path(place)),
            custom_mutator=mutate,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
