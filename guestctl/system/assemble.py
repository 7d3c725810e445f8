"""Puts a system together: the artifacts of its components become one root file system.

They are unpacked one over the other, so what comes later stands. That two of them bring the same
path is told: it hardly ever is what somebody wanted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestctl.translate import collect, stage

__all__ = ["Assembly", "Collision", "Part", "assemble", "collisions"]

# What must be equal for one path to be the same thing twice.
_FACTS = ("type", "mode", "uid", "gid", "size", "sha256", "target")


@dataclass(frozen=True)
class Part:
    """An artifact: its archive, and its files as its manifest lists them."""

    name: str
    archive: Path
    files: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Collision:
    """`path` is in two parts, and not the same in both: that of `last` stands. `differ` says in
    what they differ.
    """

    path: str
    first: str
    last: str
    differ: tuple[str, ...]

    def __str__(self) -> str:
        differ = ", ".join(self.differ)
        return f"{self.path}: {self.last} replaces that of {self.first} ({differ})"


@dataclass(frozen=True)
class Assembly:
    """What came of it: entries of the archive, and what was told on the way."""

    entries: int
    collisions: tuple[Collision, ...]
    warnings: tuple[str, ...]


def assemble(parts: Sequence[Part], out: Path) -> Assembly:
    """Writes the parts, one over the other, as the archive `out` (.tar, .tar.zst, …).

    Owners, modes, device nodes and times are those of the parts. The same parts in the same order
    give the same bytes. `out` appears only when it is whole.

    :raise ArchiveError: a part is broken.
    """
    warnings: list[str] = []
    with tempfile.TemporaryDirectory(prefix=".assemble.", dir=out.absolute().parent) as folder:
        tree = Path(folder, "tree")
        for part in parts:
            staged = stage(part.archive, tree, security_model="mapped-file")
            warnings += [f"{part.name}: {line}" for line in staged.warnings]
        report = collect(tree, out)
    return Assembly(report.entries, tuple(collisions(parts)), (*warnings, *report.warnings))


def collisions(parts: Iterable[Part]) -> list[Collision]:
    """Every path that two parts have differently. Folders may be shared."""
    held: dict[str, tuple[str, Mapping[str, Any]]] = {}
    found = []
    for part in parts:
        for facts in part.files:
            path = str(facts["path"]).removeprefix("./")
            if not _is_named(path):
                continue
            if path in held:
                first, other = held[path]
                differ = tuple(key for key in _FACTS if facts.get(key) != other.get(key))
                if differ:
                    found.append(Collision(path, first, part.name, differ))
            held[path] = (part.name, facts)
    return found


def _is_named(path: str) -> bool:
    """Whether it is more than the root folder, which each artifact has for itself."""
    return path not in ("", ".", "/")
