"""What is known of compilers, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VIEW_PATH", "Fingerprint", "GuestCompiler", "Mismatch", "Pairing", "Toolchain"]

VIEW_PATH = b"/.tc"  # where a view shows the toolchain's folder to its programs


@dataclass(frozen=True)
class Fingerprint:
    """What decides the bytes that a compiler makes.

    `version` is gcc's (12.2.0), `triplet` the target's; `configure` are configure's options that
    bear on the output, `binutils` the version of as and ld.
    """

    version: str
    triplet: str
    configure: tuple[str, ...]
    binutils: str


@dataclass(frozen=True)
class Toolchain:
    """A cross compiler in the user's cache. `path` is its folder, the same for all views of it."""

    arch: str
    id: str
    path: Path
    fingerprint: Fingerprint
    packages: Mapping[str, str]  # name: version


@dataclass(frozen=True)
class GuestCompiler:
    """A compiler as found in a guest. `prefix` is where it lies: b"/usr", b"/tools".

    `hashes` are the SHA-256 of its parts (cc1, cc1plus, as, ld, specs) that are there.
    """

    prefix: bytes
    fingerprint: Fingerprint
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class Pairing:
    """A guest's compiler and the host's toolchain that stands for it."""

    guest: GuestCompiler
    toolchain: Toolchain


@dataclass(frozen=True)
class Mismatch:
    """Why no toolchain stands for a guest's compiler: the part that differs, and how."""

    part: str
    guest: str
    host: str

    def __str__(self) -> str:
        return f"{self.part}: the guest's is {self.guest}, the host's {self.host}"
