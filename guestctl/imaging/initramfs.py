"""The initramfs: our static init, a console, a few mount points and the stub of offload, as a newc
cpio archive.

Written by hand, because a device node cannot be made on disk without root. Format: the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from guestctl.errors import ImageError
from guestctl.imaging.workshop import Step

__all__ = ["Member", "build_guest_init", "init_of", "newc", "stub_names", "write_initramfs"]

VERSION = 3
_FOLDERS = ("dev", "image", "proc", "root", "run", "scratch", "sys", "tmp")
# What guest-init lays over the image: the stub changes more often than the root file system.
_STUB = "extra/tools/offload"
_COMPILERS = ("gcc", "g++", "cpp")
_STANDARD = ("cc", "c++")  # without a triplet only, as Debian has them
_BINUTILS = ("as", "ld", "ar", "ranlib", "nm", "strip", "objcopy")


@dataclass(frozen=True)
class Member:
    """One file; `mode` has the type bits, `device` is (major, minor)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def build_guest_init(step: Step, source: Path, cross: str) -> None:
    """Compiles guest-init; its sources may be read-only."""
    command: list[str | Path] = ["make", "-C", source, f"CC={cross}gcc", f"OUT={step.out}"]
    step.run(command, deadline=600)


def stub_names(triplet: str, versions: Iterable[str]) -> list[str]:
    """The programs that the stub stands for: plain, of a triplet, and with gcc's versions.

    All of them must be in the image and in /tools too: a name that is found in PATH and then is not
    there would be a compiler that does not work, where there was none.
    """
    versioned = [f"{name}-{version}" for name in _COMPILERS for version in versions]
    names = (*_COMPILERS, *_BINUTILS, *versioned)
    return sorted({*_STANDARD, *names, *(f"{triplet}-{name}" for name in names)})


def write_initramfs(init: Path, stub: Path, names: Sequence[str], output: Path) -> None:
    """Writes the archive; the same programs give the same bytes."""
    folders = [*_FOLDERS, "extra", "extra/tools", _STUB, f"{_STUB}/bin"]
    members = [Member(name, stat.S_IFDIR | 0o755) for name in folders]
    members.append(Member("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    members.append(Member("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)))
    members.append(Member("init", stat.S_IFREG | 0o755, init.read_bytes()))
    members.append(Member(f"{_STUB}/stub", stat.S_IFREG | 0o755, stub.read_bytes()))
    members.append(Member(f"{_STUB}/connect", stat.S_IFLNK | 0o777, b"stub"))
    members += [Member(f"{_STUB}/bin/{name}", stat.S_IFLNK | 0o777, b"../stub") for name in names]
    output.write_bytes(newc(sorted(members, key=lambda member: member.name)))


def newc(members: Iterable[Member]) -> bytes:
    """Returns a cpio archive: all owned by root, of the year 1970."""
    archive = bytearray()
    for number, member in enumerate([*members, Member("TRAILER!!!", 0)], 1):
        name = member.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(member.mode) else 1
        fields = (
            number, member.mode, 0, 0, links, 0, len(member.data), 0, 0, *member.device,
            len(name), 0,
        )  # fmt: skip
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4)
        archive += member.data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def init_of(initramfs: Path) -> bytes:
    """The program that `write_initramfs` has put in as `init`; raises ImageError without one."""
    data = initramfs.read_bytes()
    at = 0
    while data[at : at + 6] == b"070701":
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, name_size = fields[6], fields[11]
        name = data[at + 110 : at + 109 + name_size]
        begin = at + 110 + name_size + -(110 + name_size) % 4
        if name == b"init":
            return data[begin : begin + size]
        at = begin + size + -size % 4
    raise ImageError(f"{initramfs} holds no init")
