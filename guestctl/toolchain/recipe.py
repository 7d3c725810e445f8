"""What a toolchain is made from, as text. Pure. docs/toolchains.md has every key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from guestctl.document import Document, record_of
from guestctl.errors import ImageError
from guestctl.toolchain.fitting import Layout

__all__ = ["Recipe", "Side", "parse_recipe"]


@dataclass(frozen=True)
class Side:
    """The compiler of one architecture: its packages, and the folder that it keeps its parts in."""

    debian: str
    folder: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """The cross compiler of a target, and the guest's own that it stands for."""

    arch: str
    triplet: str
    major: str
    suites: tuple[str, ...]
    cross: Side
    native: Side
    libraries: tuple[str, ...]
    drivers: tuple[str, ...]
    binutils: tuple[str, ...]
    parts: tuple[str, ...]
    prefixes: tuple[str, ...]

    @property
    def layout(self) -> Layout:
        return Layout(self.triplet, self.major, self.cross.folder, self.native.folder)

    @property
    def moved(self) -> bool:
        """Whether the cross compiler has other folders than the native one: else it is that one."""
        return self.cross.folder != self.native.folder

    def programs(self) -> Iterator[tuple[str, str, str]]:
        """The role of each program, where the cross compiler has it, and where the native one."""
        for name in (*self.drivers, *self.binutils):
            path = f"/usr/bin/{self.triplet}-{name}"
            yield name.removesuffix(f"-{self.major}").removesuffix(".bfd"), path, path
        tail = f"{self.triplet}/{self.major}"
        for name in self.parts:
            yield name, f"{self.cross.folder}/{tail}/{name}", f"{self.native.folder}/{tail}/{name}"


def parse_recipe(text: str, file: str) -> Recipe:
    """Reads a toolchain's recipe; raises ImageError that names file, line and key."""
    document = Document(
        text, file, what="toolchain", error=ImageError, readers={"Side": record_of(Side)}
    )
    recipe: Recipe = document.record(document.root, Recipe)
    return recipe
