"""What a compiler's program is, whatever was done to its name, its loader and its library path.

The image's copies in /tools have another loader and rpath than the packages' programs, and that
moves other parts of the file; code and constants stay. So their hash is the program's identity.
"""

from __future__ import annotations

import hashlib

from guestctl.toolchain.elf import Elf, ElfError

__all__ = ["VERSION", "identity_of"]

VERSION = 1  # of what identity_of makes: identities that were kept are of no use to another

_SECTIONS = (b".text", b".rodata")


def identity_of(data: bytes) -> str:
    """The SHA-256 of an ELF file's code and constants, and of its machine.

    Raises ElfError for what has none: a script, a program without section headers.
    """
    elf = Elf(data)
    state = hashlib.sha256(f"{elf.machine} {elf.wide}".encode())
    for name in _SECTIONS:
        section = elf.section(name)
        if section is None:
            raise ElfError(f"it has no section {name.decode()}")
        content = elf.content(section)
        state.update(f" {name.decode()} {section.address} {len(content)} ".encode() + content)
    return state.hexdigest()
