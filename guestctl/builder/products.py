"""The parts of an artifact: which of its files belong to `-dev`, `-doc`, …, and archives of each.

The whole stays as it is, for sysroots. A part holds its files and the folders above them; what no
rule wants is the part that has the component's own name.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from guestctl import collect, stage
from guestctl.definitions import Product

__all__ = ["Rules", "part_file", "split"]

_END = bytes(1024)
_BLOCK = 1 << 20


class Rules:
    """What belongs to which part: of `products`, the first that has a regular expression for the
    whole path, as it is in the archive.
    """

    def __init__(self, component: str, products: Sequence[Product]) -> None:
        self.component = component
        self._rules = [
            (_name(component, each.artifact), [re.compile(text) for text in each.include])
            for each in products
        ]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of all parts, the component's own last; none when nothing is split."""
        names = dict.fromkeys(name for name, _ in self._rules if name != self.component)
        return (*names, self.component) if names else ()

    def of(self, path: str) -> str:
        """The part that a path belongs to; `./` at its beginning makes no difference."""
        path = _plain(path)
        for name, patterns in self._rules:
            if any(pattern.fullmatch(path) for pattern in patterns):
                return name
        return self.component


def _name(component: str, artifact: str) -> str:
    return component + artifact if artifact.startswith("-") else artifact


def _plain(path: str) -> str:
    return path.removeprefix("./") or "."


def part_file(part: str) -> str:
    """The name of a part's archive in the artifact's folder."""
    return f"part-{part}.tar.zst"


def split(whole: Path, rules: Rules, scratch: Path, mtime: int) -> dict[str, Path]:
    """Archives of all parts of the plain tar `whole`, by their names, below `scratch`."""
    found = {}
    for part, ranges in _ranges(whole, rules).items():
        plain, out = scratch / f"{part}.tar", scratch / part_file(part)
        _copy(whole, ranges, plain)
        # Through the translator, for the sake of the compression, and of one form for all.
        with tempfile.TemporaryDirectory(dir=scratch) as tree:
            stage(plain, tree)
            collect(tree, out, mtime=mtime)
        plain.unlink()
        found[part] = out
    return found


def _ranges(whole: Path, rules: Rules) -> Mapping[str, list[tuple[int, int]]]:
    """Which bytes of the archive are each part's: offset and size of its entries."""
    with tarfile.open(whole, "r:") as tar:
        members = tar.getmembers()
        ends = [*(each.offset for each in members[1:]), tar.offset]
    homes: dict[str, str] = {}
    above: dict[str, set[str]] = {part: set() for part in rules.parts}
    for each in members:
        # A further name of a file goes where the file is.
        home = homes.get(_plain(each.linkname)) if each.islnk() else None
        name = _plain(each.name)
        homes[name] = home or rules.of(name)
        above[homes[name]].update(map(str, PurePosixPath(name).parents))
    found: dict[str, list[tuple[int, int]]] = {part: [] for part in rules.parts}
    for each, end in zip(members, ends, strict=True):
        name = _plain(each.name)
        for part, folders in above.items():
            if homes[name] == part or (each.isdir() and name in folders):
                found[part].append((each.offset, end - each.offset))
    return found


def _copy(whole: Path, ranges: Sequence[tuple[int, int]], out: Path) -> None:
    with open(whole, "rb") as source, open(out, "wb") as part:
        for offset, length in ranges:
            source.seek(offset)
            size = length
            while size > 0 and (block := source.read(min(size, _BLOCK))):
                part.write(block)
                size -= len(block)
        part.write(_END)
