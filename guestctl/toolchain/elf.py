"""Reading ELF files, of both classes and both byte orders. Format: elf(5). Pure.

Everything comes from guests or packages: each offset is checked, ElfError says what is wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from guestctl.errors import GuestctlError
from guestctl.targets import Target, target

__all__ = ["Elf", "ElfError", "Section", "Segment", "check_object"]

MAGIC = b"\x7fELF"
_ARCHIVE = b"!<arch>\n"
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
SHT_NOBITS = 8
_DT_NEEDED, _DT_STRTAB = 1, 5
_LITTLE = 1
_MOST = 1 << 16  # headers that one file may have


class ElfError(GuestctlError):
    """A file is not the ELF file that it should be."""


@dataclass(frozen=True)
class Segment:
    """A program header; `at` is where it lies in the file."""

    at: int
    kind: int
    flags: int
    offset: int
    address: int
    size: int  # in the file
    memory: int


@dataclass(frozen=True)
class Section:
    name: bytes
    kind: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    entry: int


class Elf:
    """The headers of an ELF file that is in memory; raises ElfError where there is none."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        if data[:4] != MAGIC or len(data) < 52:
            raise ElfError("not an ELF file")
        if data[4] not in (1, 2) or data[5] not in (1, 2):
            raise ElfError("an ELF file of an unknown class or byte order")
        self.wide = data[4] == 2
        self.little = data[5] == _LITTLE
        self.order = "<" if self.little else ">"
        self.kind, self.machine = self.read("HH", 16)
        where = "QQQIHHHHHH" if self.wide else "IIIIHHHHHH"
        (_, self._segments_at, self._sections_at, self.flags, _, self._segment_size,
         self._segment_count, self._section_size, self._section_count,
         self._names) = self.read(where, 24)  # fmt: skip

    def read(self, form: str, offset: int) -> tuple[int, ...]:
        """Numbers of the file in its own byte order, unaligned; raises ElfError past its end."""
        layout = self.order + form
        if not 0 <= offset <= len(self.data) - struct.calcsize(layout):
            raise ElfError(f"an ELF file ends before offset {offset}")
        return struct.unpack_from(layout, self.data, offset)

    @cached_property
    def segments(self) -> list[Segment]:
        found = []
        for index in range(min(self._segment_count, _MOST)):
            at = self._segments_at + index * self._segment_size
            if self.wide:
                kind, flags, offset, address, _, size, memory = self.read("IIQQQQQ", at)
            else:
                kind, offset, address, _, size, memory, flags = self.read("IIIIIII", at)
            found.append(Segment(at, kind, flags, offset, address, size, memory))
        return found

    @cached_property
    def sections(self) -> list[Section]:
        rows = []
        for index in range(min(self._section_count, _MOST)):
            at = self._sections_at + index * self._section_size
            rows.append(self.read("IIQQQQIIQQ" if self.wide else "IIIIIIIIII", at))
        if not rows:
            return []
        if self._names >= len(rows):
            raise ElfError("an ELF file without names of its sections")
        base = rows[self._names][4]
        return [
            Section(self.text(base + name), kind, address, offset, size, link, info, entry)
            for name, kind, _, address, offset, size, link, info, _, entry in rows
        ]

    def section(self, name: bytes) -> Section | None:
        """The first section of this name."""
        return next((section for section in self.sections if section.name == name), None)

    def content(self, section: Section) -> bytes:
        """A section's bytes; none for one that is all zero in memory."""
        if section.kind == SHT_NOBITS:
            return b""
        end = section.offset + section.size
        if end > len(self.data):
            raise ElfError(f"the section {section.name!r} ends after the file")
        return bytes(self.data[section.offset : end])

    def text(self, offset: int) -> bytes:
        """The string that ends with a zero byte."""
        end = self.data.find(b"\0", offset) if 0 <= offset < len(self.data) else -1
        if end < 0:
            raise ElfError(f"an ELF file has no text at offset {offset}")
        return bytes(self.data[offset:end])

    def offset(self, address: int) -> int | None:
        """Where in the file the byte of an address of memory is."""
        for segment in self.segments:
            inside = address - segment.address
            if segment.kind == PT_LOAD and 0 <= inside < segment.size:
                return segment.offset + inside
        return None

    def address(self, offset: int) -> int | None:
        """The opposite of `offset`."""
        for segment in self.segments:
            inside = offset - segment.offset
            if segment.kind == PT_LOAD and 0 <= inside < segment.size:
                return segment.address + inside
        return None

    @property
    def interpreter(self) -> bytes:
        """The loader that a dynamic program names; empty where there is none."""
        found = [segment for segment in self.segments if segment.kind == PT_INTERP]
        return self.text(found[0].offset) if found else b""

    @property
    def needed(self) -> list[str]:
        """The names of the libraries that it is linked with."""
        table = dict[int, list[int]]()
        for tag, value in self._dynamic():
            table.setdefault(tag, []).append(value)
        if _DT_NEEDED not in table:
            return []
        strings = self.offset(table.get(_DT_STRTAB, [0])[0])
        if strings is None:
            raise ElfError("an ELF file without the names of its libraries")
        return [self.text(strings + at).decode("ascii", "replace") for at in table[_DT_NEEDED]]

    def _dynamic(self) -> Iterator[tuple[int, int]]:
        form, step = ("QQ", 16) if self.wide else ("II", 8)
        for segment in self.segments:
            if segment.kind == PT_DYNAMIC:
                for at in range(segment.offset, segment.offset + segment.size, step):
                    tag, value = self.read(form, at)
                    yield tag, value


def check_object(data: bytes, arch: str) -> str:
    """Says what keeps a file from being of the target `arch`; empty when nothing does.

    Class, byte order, machine and some flags of an ELF file count, and those of each ELF file in
    an archive. What is neither has nothing that could be wrong.
    """
    wanted = target(arch)
    if data.startswith(_ARCHIVE):
        found = (_check_elf(member, wanted) for member in _members(data))
        return next((wrong for wrong in found if wrong), "")
    return _check_elf(data, wanted)


def _members(archive: bytes) -> Iterator[bytes]:
    """What an archive holds. Format: ar(5)."""
    at = len(_ARCHIVE)
    while at + 60 <= len(archive):
        digits = archive[at + 48 : at + 58].strip()
        size = int(digits) if digits.isdigit() else len(archive)
        yield archive[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def _check_elf(data: bytes, wanted: Target) -> str:
    if not data.startswith(MAGIC):
        return ""
    try:
        elf = Elf(data)
    except ElfError as error:
        return str(error)
    facts = {
        "bits": (64 if elf.wide else 32, wanted.elf_class),
        "byte order": ("little" if elf.little else "big", "little"),
        "machine": (elf.machine, wanted.elf_machine),
        "flags": (elf.flags & wanted.elf_flags_mask, wanted.elf_flags),
    }
    differing = [
        f"{name} {has}, not {wants}" for name, (has, wants) in facts.items() if has != wants
    ]
    return f"an ELF file of {differing[0]}" if differing else ""
