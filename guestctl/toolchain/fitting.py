"""Fits a cross compiler's program to stand where the guest's own program is. Pure.

A cross compiler differs from the native one of the same sources in a few texts that were compiled
in: where its own files are, what configure was told, which package it is. They are made those of
the native program, so that it finds, prints and records what the native one would. A text that is
longer than the old one goes to unused bytes at the end of the code's last page, and the
instructions that load its address are changed; nothing else in the program moves.
Sources: cppdefault.cc, incpath.cc and gcc.cc of gcc 12.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from guestctl.toolchain.elf import PT_LOAD, Elf, ElfError

__all__ = ["Layout", "fit_compiler", "fit_loader", "fit_program", "texts_of"]

LOADER = b"/.tc/ld.so"
LIBRARIES = b"/.tc/lib/"
_PAGE = 4096
_CONFIGURE = re.compile(rb"(?<=\0)\.\./src/configure [^\0]+(?=\0)")
_PACKAGE = re.compile(rb"--with-pkgversion='([^']+)'")
# Opcodes of `mov $imm32, %reg` that load a text's address; the last two belong to 64 bit registers.
_LOADS = re.compile(rb"[\xb8-\xbf]|\x48\xc7[\xc0-\xc7]|\x49\xc7[\xc0-\xc7]")


@dataclass(frozen=True)
class Layout:
    """Where compilers keep their files: `cross` and `native` are folders (/usr/lib/gcc-cross)."""

    triplet: str
    major: str
    cross: str
    native: str

    def paths(self) -> dict[bytes, bytes]:
        """The compiled-in paths of the cross compiler's programs, and those of the native one."""
        tail = f"{self.triplet}/{self.major}/../../../../{self.triplet}/include/finclude/"
        table = {f"{self.cross}/": f"{self.native}/",
                 f"{self.cross}/{tail}": f"{self.native}/{tail}"}  # fmt: skip
        return {old.encode(): new.encode() for old, new in table.items()}


def texts_of(driver: bytes) -> tuple[bytes, bytes]:
    """What a compiler says of itself: its package, as --version has it, and configure's options."""
    configure = _CONFIGURE.search(driver)
    package = _PACKAGE.search(configure[0]) if configure else None
    if configure is None or package is None:
        raise ElfError("the compiler does not say how it was configured")
    return b"(" + package[1] + b") ", configure[0]


def fit_program(data: bytes) -> bytes:
    """Makes a program of the host start through the toolchain's own loader.

    Raises ElfError when it is linked in a way that is not known here.
    """
    image = bytearray(data)
    for segment in Elf(data).segments:
        if segment.kind == 3:
            if segment.size <= len(LOADER):
                raise ElfError("the name of its loader leaves too little room")
            image[segment.offset : segment.offset + segment.size] = LOADER.ljust(
                segment.size, b"\0"
            )
    return bytes(image)


def fit_loader(data: bytes) -> bytes:
    """Makes the host's ld.so look for libraries in the toolchain, and read nothing of /etc.

    The lengths of its own folders are compiled in apart from their names: the new name is as long.
    """
    found = 0
    for old in (b"/etc/ld.so.preload", b"/etc/ld.so.cache"):
        found += data.count(old + b"\0")
        data = data.replace(old + b"\0", b"/.tc/none".ljust(len(old), b"/") + b"\0")
    folders = re.compile(rb"(?:/usr)?/lib/[a-z0-9_]+-linux-gnu/(?=\0)")
    data, changed = folders.subn(lambda match: LIBRARIES.ljust(len(match[0]), b"/"), data)
    if found < 2 or changed < 2:
        raise ElfError("the host's ld.so is not one that is known here")
    return data


def fit_compiler(
    data: bytes, native: bytes, layout: Layout, texts: Mapping[bytes, bytes], prefix: str = "/usr"
) -> bytes:
    """Gives a part of the cross compiler the paths and texts of the native compiler's same part.

    `texts` are the cross compiler's `texts_of` and the native's; `prefix` is where the guest's
    compiler lies. Raises ElfError when the two do not correspond as they should.
    """
    image = bytearray(data)
    slack = _Slack(image)
    for old, new in {**layout.paths(), **texts}.items():
        if bool(_places(data, old)) != bool(_places(native, new)):
            raise ElfError(f"only one of the two compilers holds the text {new[:60]!r}")
        if old != new and _places(data, old):
            slack.replace(old, new)
    name = os.path.basename(layout.cross).encode()  # with which a moved driver's prefix ends
    if name != os.path.basename(layout.native).encode() and _places(data, name):
        slack.replace(name, os.path.basename(layout.native).encode())
    _fit_driver(image, slack)
    _fit_collect(image, layout)
    _fit_includes(image, slack, native, layout, prefix)
    return _without(bytes(image), layout)


def _without(data: bytes, layout: Layout) -> bytes:
    """Blanks the names of the cross compiler's own folders, which nothing uses any more."""
    own = re.compile(re.escape(f"{layout.cross}/".encode()) + rb"[^\0]*")
    return own.sub(lambda match: bytes(len(match[0])), data)


def _places(data: bytes | bytearray, text: bytes) -> list[int]:
    """Where a text is that is not the end of a longer one: numbers may come before it."""
    found = []
    at = data.find(text + b"\0")
    while at >= 0:
        if not 32 <= data[at - 1] < 127:
            found.append(at)
        at = data.find(text + b"\0", at + 1)
    return found


class _Slack:
    """The zero bytes between the end of the code and the end of its last page."""

    def __init__(self, image: bytearray) -> None:
        self.image = image

    def replace(self, old: bytes, new: bytes) -> None:
        """Puts `new` where `old` is, or elsewhere if there is too little room."""
        image = self.image
        places = _places(image, old)
        if len(places) != 1:
            raise ElfError(f"the text {old[:40]!r} is there {len(places)} times")
        at = places[0]
        if len(new) <= len(old):
            image[at : at + len(old)] = new.ljust(len(old), b"\0")
            return
        elf = Elf(image)
        was, now = elf.address(at), self.add(new)
        if was is None:
            raise ElfError(f"the text {old[:40]!r} is not loaded")
        if _redirect(image, elf, was, now) == 0:
            raise ElfError(f"nothing loads the text {old[:40]!r}")

    def add(self, text: bytes) -> int:
        """Adds bytes to the code's segment, and a zero; returns their address, a multiple of 8."""
        image = self.image
        code = next(s for s in Elf(image).segments if s.kind == PT_LOAD and s.flags & 1)
        start = -(-(code.offset + code.size) // 8) * 8
        end = start + len(text) + 1
        if end > -(-(code.offset + code.size) // _PAGE) * _PAGE or any(image[start:end]):
            raise ElfError("the code's last page has no room left")
        image[start : start + len(text)] = text
        struct.pack_into("<QQ", image, code.at + 32, end - code.offset, end - code.offset)
        return code.address + start - code.offset


def _redirect(image: bytearray, elf: Elf, was: int, now: int) -> int:
    """Changes what loads the address `was` to load `now`; returns how many places there were."""
    code = next(s for s in elf.segments if s.kind == PT_LOAD and s.flags & 1)
    count = 0
    for match in re.finditer(re.escape(struct.pack("<I", was)), bytes(image)):
        at = match.start()
        if code.offset <= at < code.offset + code.size:
            if not _LOADS.fullmatch(image[at - 1 : at]) and not _LOADS.fullmatch(
                image[at - 3 : at]
            ):
                raise ElfError(f"what loads a text at {at:#x} is not known here")
        elif image[at + 4 : at + 8] != bytes(4) or at % 8:
            raise ElfError(f"what names a text at {at:#x} is not known here")
        struct.pack_into("<I", image, at, now)
        count += 1
    return count


def _fit_driver(image: bytearray, slack: _Slack) -> None:
    """Makes the driver a native one without a sysroot, in `cross_compile` and its neighbour.

    gcc.cc keeps both as pointers to texts in its data: cross_compile to "1", and 16 bytes on,
    target_system_root to "/".
    """
    elf = Elf(image)
    if not _places(image, b"cross_compile"):
        return
    data = next(s for s in elf.segments if s.kind == PT_LOAD and s.flags & 2)

    def text_at(place: int) -> bytes:
        where = elf.offset(elf.read("Q", place)[0])
        return b"" if where is None else bytes(image[where : where + 2])

    places = range(data.offset, data.offset + data.size - 23, 8)
    found = [p for p in places if text_at(p) == b"1\0" and text_at(p + 16) == b"/\0"]
    if len(found) != 1:
        raise ElfError("the driver does not show where its cross_compile is")
    struct.pack_into("<Q", image, found[0], slack.add(b"0"))
    struct.pack_into("<Q", image, found[0] + 16, 0)


def _fit_collect(image: bytearray, layout: Layout) -> None:
    """Makes collect2 look for `ld`, `nm` and so on in PATH, not for those with the triplet's name.

    It joins the triplet, a dash and the name, one after the other; triplet and dash become empty.
    """
    elf = Elf(image)
    if not _places(image, b"collect-ld"):
        return
    triplet = layout.triplet.encode()
    named, dashed = (_loads(image, elf, text) for text in (triplet, b"-"))
    pairs = [(one, other) for one in named for other in dashed if abs(one - other) < 16]
    places = _places(image, triplet)
    empty = elf.address(places[0] + len(triplet)) if len(places) == 1 else None
    if len(pairs) < 4 or empty is None:
        raise ElfError("collect2 joins its names otherwise than is known here")
    for place in (place for pair in pairs for place in pair):
        struct.pack_into("<I", image, place, empty)


def _loads(image: bytearray, elf: Elf, text: bytes) -> list[int]:
    """Where the code loads the address of a text, which may be the end of another."""
    found = []
    at = image.find(text + b"\0")
    while at >= 0:
        address = elf.address(at)
        if address is not None:
            pattern = re.compile(rb"[\xb8-\xbf](?=" + re.escape(struct.pack("<I", address)) + rb")")
            found += [match.end() for match in pattern.finditer(image)]
        at = image.find(text + b"\0", at + 1)
    return found


def _fit_includes(
    image: bytearray, slack: _Slack, native: bytes, layout: Layout, prefix: str
) -> None:
    """Gives cc1 the native compiler's folders of headers, under the names that it uses for them.

    Debian's native compilers take each folder's real path, their cross compilers do not: so the
    table gets the real paths, which are then not relocated. cppdefault.h has the form of a row:
    two pointers and four bytes.
    """
    elf, other = Elf(image), Elf(native)
    ours, theirs = _exported(elf), _exported(other)
    if b"cpp_include_defaults" not in ours:
        return
    rows = []
    at, size = theirs[b"cpp_include_defaults"]
    pointer, step = ("Q", 24) if other.wide else ("I", 12)
    for row in range(at, at + size - step, step):
        (address,) = other.read(pointer, row)
        where = other.offset(address)
        if where is None:
            raise ElfError("the native compiler's table of folders has no texts")
        flags = bytearray(other.data[row + step - (8 if other.wide else 4) :][:4])
        path = _real(other.text(where).decode(), flags, layout, prefix)
        rows.append(struct.pack("<QQ4s4x", slack.add(path), 0, flags))
    at, _size = ours[b"cpp_include_defaults"]
    image[at : at + 24] = rows[0]  # some code reads the first row by an address of its own
    was, now = elf.address(at), slack.add(b"".join(rows) + bytes(24))
    if was is None or _redirect(image, elf, was, now) == 0:
        raise ElfError("nothing uses the table of folders")
    # No folder is found relative to -iprefix or to GCC_EXEC_PREFIX: the names are right already.
    for name in (b"cpp_GCC_INCLUDE_DIR", b"cpp_EXEC_PREFIX"):
        at, size = ours[name]
        image[at : at + size] = (b"\1" if name.endswith(b"DIR") else b"").ljust(size, b"\0")


def _real(path: str, flags: bytearray, layout: Layout, prefix: str) -> bytes:
    """A folder's real path; those of the compiler itself move with it."""
    _cplusplus, _aware, sysroot, multilib = flags
    # In no Debian package is there a folder /usr/TRIPLET/include; its name is printed by -v.
    real = path if path.endswith(f"/{layout.triplet}/include") else os.path.normpath(path)
    if flags[0] and multilib == 2:  # Debian puts the triplet before c++
        real = real.replace("/include/", f"/include/{layout.triplet}/", 1)
    if flags[0]:
        flags[3] = 0
    if not sysroot and prefix != "/usr":
        real = prefix + real.removeprefix("/usr")
    return real.encode()


def _exported(elf: Elf) -> dict[bytes, tuple[int, int]]:
    """Where in the file each exported datum is, and its size."""
    found = {}
    form, step = ("IBBHQQ", 24) if elf.wide else ("IIIBBH", 16)
    for section in elf.sections:
        if section.name == b".dynsym":
            names = elf.sections[section.link].offset
            for at in range(section.offset, section.offset + section.size, step):
                row = elf.read(form, at)
                value, size = (row[4], row[5]) if elf.wide else (row[1], row[2])
                where = elf.offset(value)
                if where is not None:
                    found[elf.text(names + row[0])] = (where, size)
    return found
