"""What is known of toolchains and of the compilers that they stand for, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guestctl.errors import ImageError

__all__ = ["FACTS", "FORM", "Mismatch", "Pairing", "Program", "Toolchain"]

FACTS = "toolchain.json"  # the file of a toolchain's folder that says what it is
FORM = 7  # of that file, and of the folder


@dataclass(frozen=True)
class Program:
    """One program of a compiler. `path` is relative to the compiler's prefix.

    `identity` is that of the guest's own program, which the host's one stands for.
    """

    role: str  # gcc, g++, cpp, cc1, as, ld, ar ...
    path: str
    identity: str


@dataclass(frozen=True)
class Toolchain:
    """A cross compiler in the user's cache, fitted to stand for one compiler of a guest.

    `path` is the folder that a view shows at /.tc. `version` and `configure` are what that
    compiler says of itself, `prefixes` are where in a guest it may lie. `moved` says that it was
    a cross compiler, whose folders have been replaced.
    """

    arch: str
    triplet: str
    major: str
    version: str
    configure: str
    binutils: str
    moved: bool
    prefixes: tuple[str, ...]
    programs: tuple[Program, ...]
    packages: Mapping[str, str]  # name:architecture to version
    path: Path

    @property
    def id(self) -> str:
        return self.path.name.rpartition("-")[2]

    def source(self, prefix: str, program: Program) -> str:
        """Where in the folder the program for a prefix is, relative to it."""
        for folder in (prefix.strip("/"), "usr"):
            if (self.path / folder / program.path).exists():
                return f"{folder}/{program.path}"
        raise ImageError(f"{self.path} has no {program.path}", hint="remove it; install it again")

    def save(self) -> None:
        """Writes the facts into the folder."""
        facts = asdict(self)
        del facts["path"]
        (self.path / FACTS).write_text(json.dumps({"form": FORM, **facts}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Toolchain:
        """Reads a folder's facts; raises ImageError."""
        try:
            facts: dict[str, Any] = json.loads((path / FACTS).read_text())
            if facts.pop("form") != FORM:
                raise ValueError("it is of another version of guestctl")
            programs = tuple(Program(**program) for program in facts.pop("programs"))
            prefixes = tuple(facts.pop("prefixes"))
            return cls(**facts, programs=programs, prefixes=prefixes, path=path)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ImageError(f"{path} is no toolchain: {error}") from None


@dataclass(frozen=True)
class Pairing:
    """A program that a guest would run, and the toolchain that stands for it and its parts.

    `binds` are pairs: a file of the toolchain's folder, and the path in the guest where a view is
    to show it. `seen` are the guest's paths, existing or not, whose change may end the pairing.
    """

    toolchain: Toolchain
    role: str
    program: bytes  # its path in the guest, without links
    prefix: str
    binds: tuple[tuple[bytes, bytes], ...]
    seen: tuple[bytes, ...]


@dataclass(frozen=True)
class Mismatch:
    """Why no toolchain stands for a guest's program: the part that differs, and how."""

    part: str
    guest: str
    host: str

    def __str__(self) -> str:
        return f"{self.part}: the guest has {self.guest}, the host {self.host}"
