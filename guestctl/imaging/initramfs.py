"""The initramfs: our static init, a console and a few mount points, as a newc cpio archive.

Written by hand, because a device node cannot be made on disk without root. Format: the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from guestctl.imaging.workshop import Step

__all__ = ["Member", "build_guest_init", "newc", "write_initramfs"]

VERSION = 1
_FOLDERS = ("dev", "image", "proc", "root", "run", "scratch", "sys", "tmp")


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


def write_initramfs(init: Path, output: Path) -> None:
    """Writes the archive; the same init gives the same bytes."""
    members = [Member(name, stat.S_IFDIR | 0o755) for name in _FOLDERS]
    members.append(Member("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    members.append(Member("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)))
    members.append(Member("init", stat.S_IFREG | 0o755, init.read_bytes()))
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
