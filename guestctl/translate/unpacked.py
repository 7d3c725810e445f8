"""Artifacts that lie unpacked in the cache, to be linked into any number of trees.

CACHE/trees/
    KEY/            one artifact under one way of translating it; appears as a whole
        tree/       a virtfs tree whose files are 0400
        shape.json  what is in it, and what unpacking it has warned of
        stamp       touched at each use, for whoever clears the cache
    KEY.lock        flock: shared while linking, exclusive while unpacking or removing
    sums/           SHA-256 of archives by device, inode, size and times

A cache that is cleared, or lost, harms no tree: the links keep what they need.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestctl.entry import Limits
from guestctl.errors import ArchiveError, TreeError
from guestctl.places import Places, private_directory
from guestctl.translate.report import Progress, Warnings
from guestctl.tree.linked import LinkedWriter, Unlinkable, why_not_linked
from guestctl.tree.shape import FolderShape, Shape, freeze, shape_of
from guestctl.tree.state import open_tree, remove_contents
from guestctl.tree.writer import TreeWriter
from guestctl.version import __version__
from guestctl.vmeta import MAPPED_FILE, MAPPED_XATTR

__all__ = ["Artifact", "Translation", "Unpack", "cached"]

# Raised when stage writes anything in another way.
_VERSION = 2
_WAIT = 600.0
_POLL = 0.02
_TRIES = 3
# A file may change again within one tick of its clock: its sum is remembered after that.
_SETTLED = 2 * 10**9
# A tree's state lists what it links to: in an extended attribute there is room for less.
_LINKS_MAX = {MAPPED_FILE: 100_000, MAPPED_XATTR: 350}
_MANY = 1000  # entries from which on a second process helps to link
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Unpacks the source through a writer; returns entries, bytes, and the reader's warnings.
Unpack = Callable[[TreeWriter], tuple[int, int, list[str]]]


@dataclass(frozen=True)
class Translation:
    """What besides the artifact's bytes decides how its tree looks."""

    model: str
    follow_dirs: bool
    limits: Limits


@dataclass(frozen=True)
class _Shape:
    """shape.json. `began` is the time that stage gives to what no member names."""

    entries: int
    bytes: int
    began: int
    depth: int
    aside: bool
    warnings: list[str]
    folders: dict[str, Any]
    boot: str = ""


@dataclass(frozen=True)
class Artifact:
    """One that lies unpacked in the cache, and stays there while this is used."""

    token: bytes  # names it in a tree's state
    _folder: Path
    _shape: _Shape

    def link_into(
        self,
        writer: LinkedWriter,
        warnings: Warnings,
        *,
        fresh: bool,
        deepest: int,
        progress: Progress | None,
    ) -> tuple[int, int]:
        """Does what unpacking it would do; returns entries and bytes.

        :raise Unlinkable: a part of it cannot be linked; what was done can be staged over.
        """
        shape = self._shape
        if shape.depth > deepest:
            raise Unlinkable("it is too deep for its place")  # unpacking says it better
        done = 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            if progress is not None:
                progress(done, 0)

        writer.begin(shape.began, fresh=fresh)
        try:
            with open_tree(self._folder / "tree") as source:
                writer.put(
                    Shape(shape.folders),
                    source,
                    fresh=fresh,
                    twofold=shape.entries >= _MANY,
                    done=told,
                )
        except Unlinkable as error:
            if error.damaged:
                (self._folder / "shape.json").unlink(missing_ok=True)
            raise
        writer.aside = shape.aside
        for line in shape.warnings:
            warnings.add(line)
        return shape.entries, shape.bytes


@contextlib.contextmanager
def cached(
    archive: int, root: int, translation: Translation, links: tuple[bytes, ...], unpack: Unpack
) -> Iterator[Artifact]:
    """Yields the artifact whose archive is open, unpacked if it was not there. Nobody removes it
    meanwhile.

    :raise Unlinkable: it says why the tree at `root` cannot have links to it.
    """
    folder = _private(Places.of_user().cache / "trees")
    told = (_VERSION, __version__, translation, _sum_of(archive, folder))
    key = hashlib.sha256(repr(told).encode()).hexdigest()
    token = base64.urlsafe_b64encode(bytes.fromhex(key)[:6])
    if token in links:
        raise Unlinkable("the tree has this artifact already, whose files would become one")
    if len(links) >= _LINKS_MAX[translation.model]:
        raise Unlinkable(f"the tree links to {len(links)} artifacts already")
    lock, place = folder / f"{key}.lock", folder / key
    lock.touch(0o600)
    if problem := why_not_linked(os.fsencode(lock), root):
        raise Unlinkable(f"the cache {folder}: {problem}")
    for _ in range(_TRIES):
        with _locked(lock, fcntl.LOCK_SH):
            shape = _read(place)
            if shape is not None:
                os.utime(place / "stamp")
                yield Artifact(token, place, shape)
                return
        with _locked(lock, fcntl.LOCK_EX):
            if _read(place) is None:
                try:
                    _fill(place, translation, unpack)
                except (ArchiveError, TreeError) as error:
                    # A hard link to what only the tree has, or worse: unpacking there will tell.
                    raise Unlinkable(f"it cannot be unpacked by itself: {error}") from error
    raise Unlinkable("the cache is cleared again and again")


def _private(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return private_directory(folder)


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _WAIT
        while True:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    what = f"another process has been unpacking it for {_WAIT:g} s"
                    raise Unlinkable(what) from None
                time.sleep(_POLL)
        yield
    finally:
        os.close(handle)


# --- what lies in the cache -----------------------------------------------------------------


def _read(place: Path) -> _Shape | None:
    """The shape of an entry; None for one that is not there, or not of this boot.

    Nothing is forced to the disk when an entry is made, so that after a power cut its files may be
    short. What an earlier boot has left is unpacked anew.
    """
    try:
        with open(place / "shape.json", encoding="ascii") as file:
            shape = _Shape(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None
    return shape if shape.boot == _boot() else None


def _boot() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()


def _fill(place: Path, translation: Translation, unpack: Unpack) -> None:
    """Unpacks the artifact aside, and renames it; the caller holds its lock."""
    aside = place.with_name(f".{place.name}")
    _discard(aside)
    _discard(place)
    aside.mkdir(mode=0o700)
    try:
        (aside / "tree").mkdir(mode=0o700)
        shape = _unpacked(aside / "tree", translation, unpack)
        (aside / "shape.json").write_text(json.dumps(vars(shape)), encoding="ascii")
        (aside / "stamp").touch(0o600)
        os.rename(aside, place)
    except BaseException:
        _discard(aside)
        raise


def _unpacked(tree: Path, translation: Translation, unpack: Unpack) -> _Shape:
    warnings = Warnings()
    with open_tree(tree) as root:
        writer = TreeWriter(
            root,
            translation.model,
            label="",
            follow_dirs=translation.follow_dirs,
            warn=warnings.add,
        )
        try:
            entries, size, told = unpack(writer)
            writer.finish()
        finally:
            writer.close()
        folders = shape_of(root, translation.model, writer.implied)
        freeze(root, folders, file_model=translation.model == MAPPED_FILE)
    return _Shape(
        entries=entries,
        bytes=size,
        began=writer.began,
        depth=max(map(_depth, folders)),
        aside=writer.aside,
        warnings=[*warnings.all(), *told],
        folders=Shape.document_of(folders),
        boot=_boot(),
    )


def _depth(folder: FolderShape) -> int:
    """How many directories deep the folder is, or what it holds."""
    path = folder.entry.path
    return path.count(b"/") + 1 + bool(folder.leaves) if path else bool(folder.leaves)


def _discard(place: Path) -> None:
    """Removes an entry, or what is left of one; what makes it valid goes first."""
    (place / "shape.json").unlink(missing_ok=True)
    try:
        with open_tree(place) as root:
            remove_contents(root)
    except TreeError:
        return
    place.rmdir()


# --- sums -----------------------------------------------------------------------------------


def _sum_of(archive: int, folder: Path) -> str:
    """The SHA-256 of an archive, remembered for as long as the file does not change."""
    facts = os.fstat(archive)
    known = _private(folder / "sums") / f"{facts.st_dev}-{facts.st_ino}"
    mark = f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"
    with contextlib.suppress(OSError, ValueError):
        held, _, found = known.read_text(encoding="ascii").rpartition(" ")
        if held == mark and len(found) == 64:
            return found
    with open(os.dup(archive), "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    os.lseek(archive, 0, os.SEEK_SET)
    if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > _SETTLED and os.fstat(
        archive
    ) == (facts):
        aside = known.with_name(f".{known.name}.{os.getpid()}")
        aside.write_text(f"{mark} {found}", encoding="ascii")
        os.replace(aside, known)
    return found
