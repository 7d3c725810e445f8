"""The state of a saved QEMU, without the pages that a new one has anyway."""

from __future__ import annotations

import struct

import pytest

from guestctl.qemu.savedstate import without_blank

ZERO, SIZES, PAGE, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
BLOCK = b"board.flash"
NUMBER = struct.pack(">I", 2)
FOOTER = b"\x7e" + NUMBER
DEVICES = b"\x04\0\0\0\0\x05timer" + bytes(range(256)) * 3
BEFORE = b"QEVM\0\0\0\x03\x07\0\0\0\x05board"


def word(address: int, flags: int) -> bytes:
    return struct.pack(">Q", address | flags)


def named(name: bytes) -> bytes:
    return bytes([len(name)]) + name


def memory(*records: bytes) -> bytes:
    """A state with these records of its memory; they are the second of three sections."""
    sizes = word(0x5000, SIZES)
    for name, size in ((b"ram", 0x4000), (BLOCK, 0x1000)):
        sizes += named(name) + struct.pack(">QQ", size, 0x34000000)
    setup = b"\x01" + NUMBER + named(b"ram") + struct.pack(">II", 0, 4) + sizes + word(0, EOS)
    part = b"\x02" + NUMBER + b"".join(records) + word(0, EOS)
    end = b"\x03" + NUMBER + word(0, EOS)
    return BEFORE + setup + FOOTER + part + FOOTER + end + FOOTER + DEVICES


def first(block: bytes = BLOCK, fill: int = 0) -> bytes:
    return word(0, ZERO) + named(block) + bytes([fill])


def blank(page: int) -> bytes:
    return word(page * 0x400, ZERO | CONTINUE) + b"\0"


def test_pages_of_zeros_are_left_out_but_for_the_first() -> None:
    whole = memory(first(), blank(1), blank(2), blank(3))
    assert without_blank(whole, BLOCK.decode()) == memory(first())
    assert without_blank(memory(first()), BLOCK.decode()) == memory(first())


@pytest.mark.parametrize(
    "records",
    [
        (first(), blank(1), word(0x800, PAGE | CONTINUE) + bytes(0x400)),
        (first(b"another"), blank(1)),
        (first(fill=1), blank(1)),
        (first(), word(0x400, ZERO | CONTINUE) + b"\1", blank(2)),
        (first(), word(0x400, 0x80), blank(2)),
    ],
    ids=["page", "another block", "filled", "filled later", "unknown"],
)
def test_what_is_not_expected_stays_as_it_is(records: tuple[bytes, ...]) -> None:
    whole = memory(*records)
    assert without_blank(whole, BLOCK.decode()) == whole


def test_a_board_without_a_flash_and_a_state_without_memory_stay_as_they_are() -> None:
    whole = memory(first(), blank(1))
    assert without_blank(whole, "") == whole
    assert without_blank(DEVICES, BLOCK.decode()) == DEVICES


def test_a_state_that_is_cut_short_stays_as_it_is() -> None:
    whole = memory(first(), blank(1), blank(2))
    end = whole.index(b"\x03" + NUMBER + word(0, EOS)) + 5 + 8 + len(FOOTER)
    for size in range(end):
        assert without_blank(whole[:size], BLOCK.decode()) == whole[:size]
