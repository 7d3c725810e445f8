"""Which of the host's programs answers to a name that a guest's builds use. Pure.

A build calls its compiler `cc`, `gcc-12` or `armv5tel-unknown-linux-gnueabi-gcc`: all of them may
be the one that a toolchain stands for. Where a name really leads in a guest is for `pair` to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from guestctl.targets import TARGETS

__all__ = ["ROLES", "Name", "read_name"]

# What builds call the programs, and the role of each.
ROLES = {
    "cc": "gcc", "gcc": "gcc", "c++": "g++", "g++": "g++", "cpp": "cpp", "as": "as", "ld": "ld",
    "ld.bfd": "ld", "ar": "ar", "ranlib": "ranlib", "nm": "nm", "strip": "strip",
    "objcopy": "objcopy",
}  # fmt: skip

_NAME = re.compile(
    r"(?:(?P<triplet>[a-z0-9_]+(?:-[a-z0-9_]+){1,3})-)?"
    rf"(?P<tool>{'|'.join(re.escape(name) for name in sorted(ROLES, key=len, reverse=True))})"
    r"(?:-(?P<version>\d[\d.]*))?",
)
_HARD_FLOAT = re.compile(r"hardfloat|eabihf$")


@dataclass(frozen=True)
class Name:
    """What a program's name says: its role, the target that its triplet names, gcc's version."""

    role: str
    arch: str | None
    version: str | None


def read_name(name: str) -> Name | None:
    """Takes a program's name apart; None for one that is no compiler or tool of a known target.

    `arch` is None where the name has no triplet: it is the guest's own target then.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    triplet = match["triplet"]
    arch = None
    if triplet is not None:
        arch = next((row.arch for row in TARGETS.values() if _fits(triplet, row.triplets)), None)
        if arch is None:
            return None
    return Name(ROLES[match["tool"]], arch, match["version"])


def _fits(triplet: str, pattern: str) -> bool:
    hard = bool(_HARD_FLOAT.search(triplet))
    return bool(pattern) and bool(re.fullmatch(pattern, triplet)) and not hard
