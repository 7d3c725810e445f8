"""What lies in the cache, what of it is in use, and how the rest is removed.

A table says where each kind of thing lies, when it was used last, and which lock keeps others from
it. All of it can be made or fetched again; what pools that are up were made from stays.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from guestctl.places import Places
from guestctl.rundir import PoolDir, flocked, pool_names, read_json

__all__ = ["Item", "Usage", "collect", "items", "usage"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DAY = 86400.0


@dataclass(frozen=True)
class Item:
    """One thing in the cache. `used` is when it was used last, in seconds since the epoch; `busy`
    says why it must stay, and `stale` that nobody will ever use it again. `first` is removed before
    the rest: without it the thing counts as not there. Whoever works on it holds `lock`.
    """

    kind: str
    name: str
    path: Path
    used: float
    busy: str = ""
    stale: bool = False
    first: tuple[str, ...] = ()
    lock: Path | None = None


@dataclass(frozen=True)
class _Kind:
    """`pattern` finds the things below the cache; `stamp` is the file in each whose time is that
    of its last use, itself where there is none; `boot` is a file that names the boot of the host
    that it is of.
    """

    pattern: str
    stamp: str = ""
    boot: str = ""
    lock: Callable[[Path], Path | None] = lambda _path: None
    first: tuple[str, ...] = ()


_KINDS = {
    "images": _Kind(
        "images/[!.]*-*",
        stamp="used",
        first=("manifest.json",),
        lock=lambda path: path.with_name(f".{path.name.rpartition('-')[0]}.lock"),
    ),
    "steps": _Kind("steps/[!.]*-*", lock=lambda path: path.with_name(f".{path.name}.lock")),
    "templates": _Kind(
        "templates/[!.]*/",
        stamp="proven",
        boot="template.json",
        first=("template.json",),
        lock=lambda path: path.with_name(f"{path.name}.lock"),
    ),
    "packages": _Kind("packages/sha256/*/*", lock=lambda path: path.parent.parent.parent / "lock"),
    "unpacked": _Kind(
        "trees/[!.]*/",
        stamp="stamp",
        boot="shape.json",
        first=("shape.json",),
        lock=lambda path: path.with_name(f"{path.name}.lock"),
    ),
    "shares": _Kind("shares/[!.]*"),
    "logs": _Kind("logs/*.log"),
    "ledgers": _Kind("ledgers/*.jsonl"),
}
# Folders in these are no things of that kind.
_OTHERS = {"unpacked": ("sums",)}


@dataclass
class Usage:
    """How much there is of one kind. `bytes` counts what has several names once."""

    items: int = 0
    bytes: int = 0
    busy: int = 0
    stale: int = 0
    oldest: float | None = None


@dataclass
class _Sizes:
    """What lies on the disk, by inode, with the number of things that have it."""

    blocks: dict[tuple[int, int], int] = field(default_factory=dict)
    holders: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, path: Path) -> None:
        for inode, size in _inodes(path):
            self.blocks[inode] = size
            self.holders[inode] = self.holders.get(inode, 0) + 1

    def drop(self, path: Sequence[tuple[tuple[int, int], int]]) -> int:
        """What is freed when one of them goes."""
        freed = 0
        for inode, _size in path:
            self.holders[inode] -= 1
            if not self.holders[inode]:
                freed += self.blocks[inode]
        return freed

    def total(self) -> int:
        return sum(size for inode, size in self.blocks.items() if self.holders[inode])


def items(places: Places) -> list[Item]:
    """All that lies in the cache, those first that were not used for longest."""
    used = _in_use(places)
    boot = _BOOT_ID.read_text(encoding="ascii").strip()
    found = []
    for name, kind in _KINDS.items():
        for path in places.cache.glob(kind.pattern):
            if path.name not in _OTHERS.get(name, ()):
                with contextlib.suppress(FileNotFoundError):
                    found.append(_item(name, kind, path, used, boot))
    return sorted(found, key=lambda item: item.used)


def _item(name: str, kind: _Kind, path: Path, used: dict[str, str], boot: str) -> Item:
    stamps = [path, *((path / each) for each in (kind.stamp, *kind.first) if each)]
    times = [facts.st_mtime for stamp in stamps if (facts := _stat(stamp)) is not None]
    if name == "packages":
        times.append(path.stat().st_atime)
    stale = bool(kind.boot) and _boot_of(path / kind.boot) != boot
    busy = next((why for held, why in used.items() if _holds(path, held)), "")
    return Item(
        kind=name,
        name=path.name,
        path=path,
        used=max(times),
        busy=busy,
        stale=stale and not busy,
        first=kind.first,
        lock=kind.lock(path),
    )


def _in_use(places: Places) -> dict[str, str]:
    """What the pools that are up were made from, or may come to need: paths, or beginnings of them,
    and why.
    """
    found: dict[str, str] = {}
    for name in pool_names(places.runtime):
        pool = PoolDir(places.runtime / "pools" / name)
        why = f"pool {name} is up"
        found[str(places.cache / "shares" / name)] = why
        found[str(places.cache / "ledgers" / f"{name}.jsonl")] = why
        for folder in pool.guests():
            spec = folder.spec()
            for key in ("kernel", "root", "template"):
                if spec.get(key):
                    found[str(spec[key])] = why
            # What compiles for its guests, and what they see of their root, for the compiler.
            for step in ("toolchain", "folder"):
                found[str(places.cache / "steps" / f"{step}-{spec.get('arch')}-")] = why
    return found


def _holds(path: Path, held: str) -> bool:
    """Whether `held` is this thing, in it, or the beginning of its path."""
    return (
        held == str(path)
        or held.startswith(f"{path}/")
        or (held.endswith("-") and str(path).startswith(held))
    )


def _boot_of(path: Path) -> str:
    try:
        return str(read_json(path).get("boot", ""))
    except Exception:
        # Damaged: nobody will use it.
        return ""


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _inodes(path: Path) -> list[tuple[tuple[int, int], int]]:
    """The inodes below a path, each once, with the bytes that they take on the disk."""
    found = {}
    for each in _below(path):
        with contextlib.suppress(OSError):
            facts = os.lstat(each)
            found[facts.st_dev, facts.st_ino] = facts.st_blocks * 512
    return list(found.items())


def _below(path: Path) -> Iterator[str]:
    yield str(path)
    for base, folders, files in os.walk(path):
        for name in (*folders, *files):
            yield os.path.join(base, name)


def usage(places: Places) -> dict[str, Usage]:
    """What there is, by kind."""
    found = {name: Usage() for name in _KINDS}
    sizes = {name: _Sizes() for name in _KINDS}
    for item in items(places):
        total = found[item.kind]
        total.items += 1
        total.busy += bool(item.busy)
        total.stale += item.stale
        total.oldest = item.used if total.oldest is None else min(total.oldest, item.used)
        sizes[item.kind].add(item.path)
    for name, total in found.items():
        total.bytes = sizes[name].total()
    return found


def collect(
    places: Places, *, keep_days: float | None, max_size: int | None, dry_run: bool = False
) -> list[tuple[Item, int]]:
    """Removes what nobody will use again, then what was not used for `keep_days`, then what was not
    used for longest until no more than `max_size` bytes are left. Returns what went, and the bytes
    that it freed.

    What is in use, and what somebody works on, stays.
    """
    found = items(places)
    sizes = _Sizes()
    for item in found:
        sizes.add(item.path)
    left = sizes.total()
    oldest = time.time() - keep_days * _DAY if keep_days is not None else 0.0
    gone = []
    for item in sorted(found, key=lambda item: not item.stale):
        due = item.stale or item.used < oldest or (max_size is not None and left > max_size)
        if item.busy or not due:
            continue
        inside = _inodes(item.path)
        if dry_run or _removed(item):
            freed = sizes.drop(inside)
            left -= freed
            gone.append((item, freed))
    return gone


def _removed(item: Item) -> bool:
    """Removes it, unless somebody holds its lock; says whether it is gone."""
    if item.lock is None:
        return _delete(item)
    try:
        handle = flocked(item.lock)
    except FileNotFoundError:
        return False
    if handle is None:
        return False
    try:
        return _delete(item)
    finally:
        # Whoever waits for a step's lock minds that its file may go; others would not.
        if item.kind == "steps":
            item.lock.unlink(missing_ok=True)
        os.close(handle)


def _delete(item: Item) -> bool:
    """What makes it valid goes first, so that half of it is never taken for the whole."""
    for name in item.first:
        (item.path / name).unlink(missing_ok=True)
    if item.path.is_dir():
        for base, folders, _files in os.walk(item.path):
            for name in folders:
                folder = os.path.join(base, name)
                if not os.path.islink(folder):
                    os.chmod(folder, 0o700)
        shutil.rmtree(item.path, ignore_errors=True)
    else:
        item.path.unlink(missing_ok=True)
    return not item.path.exists()
