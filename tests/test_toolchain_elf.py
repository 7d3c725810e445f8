"""ELF files: facts, identities, and that nothing hostile does more than raise ElfError."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from guestctl.toolchain.elf import Elf, ElfError, check_object
from guestctl.toolchain.identity import identity_of

SOURCE = 'int table[3] = {1, 2, 3}; const char *name = "name"; int main(void) { return 0; }\n'


def built(folder: Path, *options: str) -> Path:
    folder.mkdir(exist_ok=True)
    source, output = folder / "a.c", folder / "a.out"
    source.write_text(SOURCE)
    command = ["/usr/bin/gcc", "-B/usr/bin/", *options, "-o", output, source]
    subprocess.run(command, check=True, timeout=60)
    return output


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return built(tmp_path_factory.mktemp("elf")).read_bytes()


@pytest.fixture(scope="module")
def thing(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return built(tmp_path_factory.mktemp("elf"), "-c").read_bytes()


def test_facts_of_a_program(program: bytes) -> None:
    elf = Elf(program)
    assert elf.wide
    assert elf.little
    assert elf.machine == 62
    assert elf.needed == ["libc.so.6"]
    assert elf.interpreter == b"/lib64/ld-linux-x86-64.so.2"
    section = elf.section(b".text")
    assert section is not None
    assert elf.address(section.offset) == section.address
    assert elf.offset(section.address) == section.offset
    assert elf.section(b".none") is None
    assert elf.offset(1 << 62) is None


def test_patchelf_does_not_change_an_identity(tmp_path: Path) -> None:
    first = built(tmp_path)
    other = tmp_path / "other"
    other.write_bytes(first.read_bytes())
    command = ["patchelf", "--set-interpreter", "/a/much/longer/path/to/a/loader.so", other]
    subprocess.run([*command[:-1], "--set-rpath", "/somewhere/else", other], check=True, timeout=60)
    assert first.read_bytes() != other.read_bytes()
    assert identity_of(first.read_bytes()) == identity_of(other.read_bytes())
    another = built(tmp_path / "another", "-O2", "-DX", "-fno-omit-frame-pointer")
    assert identity_of(first.read_bytes()) != identity_of(another.read_bytes())


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF" + bytes(60)])
def test_what_is_no_program_has_no_identity(data: bytes) -> None:
    with pytest.raises(ElfError):
        identity_of(data)


def test_damaged_files_raise_only_elf_errors(program: bytes) -> None:
    generator = random.Random(5)
    for _ in range(300):
        data = bytearray(program)
        for _ in range(generator.randrange(1, 40)):
            # Headers are where a change does something.
            at = generator.randrange(64 if generator.random() < 0.7 else len(data))
            data[at] = generator.randrange(256)
        cut = data[: generator.randrange(len(data))] if generator.random() < 0.3 else data
        for reads in (lambda d: Elf(d).needed, lambda d: Elf(d).sections, identity_of,
                      lambda d: check_object(d, "x86_64")):  # fmt: skip
            try:
                reads(bytes(cut))
            except ElfError:
                continue


def archive(*members: bytes) -> bytes:
    parts = [b"!<arch>\n"]
    for data in members:
        parts.append(b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (b"a/", 0, 0, 0, b"644", len(data)))
        parts.append(data + b"\n" * (len(data) % 2))
    return b"".join(parts)


def test_objects_are_of_their_target(thing: bytes, program: bytes) -> None:
    assert check_object(thing, "x86_64") == ""
    assert check_object(program, "x86_64") == ""
    assert "32" in check_object(thing, "armv5l")
    assert check_object(b"no ELF file at all", "armv5l") == ""
    assert check_object(thing[:40], "x86_64") != ""


def header(machine: int, flags: int, wide: int = 1, order: int = 1) -> bytes:
    """The head of an ELF file of 32 bits."""
    form = "<HHIIIIIHHHHHH" if order == 1 else ">HHIIIIIHHHHHH"
    fields = (1, machine, 1, 0, 0, 0, flags, 52, 0, 0, 0, 0, 0)
    return b"\x7fELF" + bytes([wide, order, 1]) + bytes(9) + struct.pack(form, *fields)


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (header(40, 0x05000000), ""),
        (header(40, 0x05000200), ""),
        (header(40, 0x05000400), "flags"),
        (header(40, 0x04000000), "flags"),
        (header(3, 0), "machine"),
        (header(40, 0x05000000, order=2), "byte order"),
    ],
)
def test_machine_byte_order_and_flags_count(data: bytes, wrong: str) -> None:
    said = check_object(data, "armv5l")
    assert wrong in said
    assert bool(said) == bool(wrong)


def test_each_member_of_an_archive_counts(thing: bytes) -> None:
    good = header(40, 0x05000000)
    assert check_object(archive(good, b"text", good), "armv5l") == ""
    assert "machine" in check_object(archive(good, b"odd", header(3, 0)), "armv5l")
    assert check_object(archive(good, thing), "armv5l") != ""
    assert check_object(b"!<arch>\n" + b"x" * 100, "armv5l") == ""
