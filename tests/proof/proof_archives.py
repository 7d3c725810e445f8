"""A Debian armel root file system, and the Linux source: there and back, whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import IO

from guestctl import collect, stage
from guestctl.packages import Archive
from guestctl.recipe import parse_lock
from guestctl.translate import check
from tests.proof import ROOT, Proof

TITLE = "Real archives come back whole"
SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
LOCK = ROOT / "images" / "armv5l.lock"
MERGED = ("bin", "lib", "sbin")
Row = tuple[object, ...]


def row(info: tarfile.TarInfo, data: IO[bytes] | None) -> Row:
    """All that a member says, and the SHA-256 of its content."""
    digest = hashlib.file_digest(data, "sha256").hexdigest() if data else ""
    stamp = info.pax_headers.get("mtime", str(int(info.mtime)))
    device = (info.devmajor, info.devminor) if info.ischr() or info.isblk() else ()
    kind = b"0" if info.isreg() else info.type
    return kind, info.mode & 0o7777, info.uid, info.gid, info.linkname, device, stamp, digest


def rows(archive: Path | IO[bytes]) -> dict[str, Row]:
    """By path; a hard link has the row of what it links to."""
    found: dict[str, Row] = {}
    opened = {"fileobj": archive} if not isinstance(archive, Path) else {"name": archive}
    with tarfile.open(**opened, mode="r|*", errors="surrogateescape") as tar:  # type: ignore[call-overload]
        for info in tar:
            name = os.path.normpath(info.name)
            if info.islnk():
                found[name] = found[os.path.normpath(info.linkname)]
            else:
                found[name] = row(info, tar.extractfile(info) if info.isreg() else None)
    return found


def twice(proof: Proof, tree: Path, what: str) -> Path:
    """Collects, stages that, collects again: the same bytes; others read it without a word."""
    first, second = proof.folder / f"{what}.tar", proof.folder / f"{what}-2.tar"
    report = collect(tree, first)
    assert not report.warnings and not check(tree)
    again = proof.folder / "again"
    shutil.rmtree(again, ignore_errors=True)
    stage(first, again)
    collect(again, second)
    assert (
        hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()
    )
    counts = []
    for program in ("tar", "bsdtar"):
        argv = [program, "-tf", str(first)]
        done = subprocess.run(
            argv, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"}
        )
        assert not done.stderr, done.stderr
        counts.append(done.stdout.count(b"\n"))
    assert counts == [report.entries] * 2
    shutil.rmtree(again)
    second.unlink()
    proof.fact(f"{what}: entries collected, listed by GNU tar, by bsdtar", f"{counts[0]:,}")
    proof.fact(f"{what}: collected, staged and collected again", "the same bytes")
    return first


def prove(proof: Proof) -> None:
    entries = parse_lock(LOCK.read_text(), str(LOCK))
    fetched = Archive(proof.places.cache / "packages", suites=SUITES).fetch(entries)
    rootfs(proof, [path for entry, path in fetched.items() if entry.group == "root"])
    source = next(path for entry, path in fetched.items() if entry.group == "kernel")
    linux(proof, source)


def rootfs(proof: Proof, packages: list[Path]) -> None:
    """Package after package into one tree, through the links of a merged /usr."""
    tree = proof.folder / "rootfs"
    shutil.rmtree(tree, ignore_errors=True)
    skeleton = proof.folder / "skeleton"
    shutil.rmtree(skeleton, ignore_errors=True)
    for name in MERGED:
        (skeleton / "usr" / name).mkdir(parents=True)
        (skeleton / name).symlink_to(f"usr/{name}")
    stage(skeleton, tree)
    wanted: dict[str, Row] = {}
    for package in packages:
        stage(package, tree, follow_dirs=True)
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE
        ) as run:
            assert run.stdout is not None
            for name, facts in rows(run.stdout).items():
                top, slash, _ = name.partition("/")
                if top in MERGED and not slash:
                    continue  # the link stays
                wanted[f"usr/{name}" if top in MERGED else name] = facts
    found = rows(twice(proof, tree, "rootfs"))
    # Folders are in many packages, and the last counts for us as for dpkg the first.
    unlike = [n for n, facts in wanted.items() if facts[0] != b"5" and found.get(n) != facts]
    missing = wanted.keys() - found.keys()
    proof.fact("rootfs: armel packages staged into it", len(packages))
    proof.fact(
        "rootfs: members that differ from their package's, or are missing",
        len(unlike) + len(missing),
    )
    assert not unlike and not missing, (unlike[:5], sorted(missing)[:5])
    shutil.rmtree(tree)


def linux(proof: Proof, package: Path) -> None:
    unpacked = proof.folder / "deb"
    shutil.rmtree(unpacked, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
    (source,) = (unpacked / "usr" / "src").glob("linux-source-*.tar.xz")
    tree = proof.folder / "linux"
    shutil.rmtree(tree, ignore_errors=True)
    stage(source, tree)
    found = rows(twice(proof, tree, "linux"))
    wanted = rows(source)
    unlike = [name for name, facts in wanted.items() if found.get(name) != facts]
    proof.fact("linux: members of the source", f"{len(wanted):,}")
    proof.fact("linux: members that differ or are missing", len(unlike))
    assert not unlike and found.keys() - wanted.keys() <= {"."}, unlike[:5]
    for path in (tree, unpacked):
        shutil.rmtree(path)
