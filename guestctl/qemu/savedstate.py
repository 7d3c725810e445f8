"""The state that a QEMU was saved as, where a part of it is better left out.

A clone's memory does not go through its state, but what a board has besides does: versatilepb's
flash, to which nobody writes, as 65,536 pages of zeros, of which QEMU looks at each when it loads
them. A flash that is new holds the same.

Source of the format: migration/savevm.c and migration/ram.c of QEMU.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["without_blank"]

# The name of the section of the memory, its instance and its version; type and number are before.
_RAM = b"\x03ram" + struct.pack(">II", 0, 4)
_HEAD = 5
_SECTION_PART, _SECTION_END = 2, 3
_FOOTER = 0x7E
# A page's address has these in the bits that it does not need.
_FLAGS = 0x3FF
_ZERO, _SIZES, _EOS, _CONTINUE = 0x02, 0x04, 0x10, 0x20


def without_blank(state: bytes, block: str) -> bytes:
    """The state without the pages of a block of memory that has only zeros.

    Where another block is in it, or anything else that was not to be expected, it stays as it is.
    """
    begin = state.find(_RAM) - _HEAD
    if not block or begin < 0:
        return state
    kept, done = [], 0
    try:
        for at, end in _blank_pages(state, begin, block.encode()):
            kept.append(state[done:at])
            done = end
    except (ValueError, IndexError, struct.error):
        return state
    return b"".join((*kept, state[done:]))


def _blank_pages(state: bytes, begin: int, block: bytes) -> Iterator[tuple[int, int]]:
    """From where to where the records of such pages go, but for the first, which names the block.

    Raises ValueError and others for what is not expected.
    """
    number = state[begin + 1 : begin + _HEAD]
    at = begin + _HEAD + len(_RAM)
    while True:
        (word,) = struct.unpack_from(">Q", state, at)
        flags = word & _FLAGS
        if flags == _SIZES:
            at = _after_sizes(state, at + 8, word - flags)
        elif flags == _ZERO | _CONTINUE and state[at + 8] == 0:
            yield at, at + 9
            at += 9
        elif flags == _ZERO:
            name = at + 9
            at = name + state[at + 8]
            if state[name:at] != block or state[at]:
                raise ValueError("another block")
            at += 1
        elif flags == _EOS:
            at += 8
            if state[at] != _FOOTER or state[at + 1 : at + _HEAD] != number:
                raise ValueError("no footer")
            at += _HEAD
            if state[at] not in (_SECTION_PART, _SECTION_END):
                return
            if state[at + 1 : at + _HEAD] != number:
                raise ValueError("another section")
            at += _HEAD
        else:
            raise ValueError("a page that is not blank")


def _after_sizes(state: bytes, at: int, total: int) -> int:
    """Behind the list of all blocks: each with its name, its size and, since it may be one that
    is not saved, its address."""
    while total > 0:
        at += 1 + state[at]
        (size,) = struct.unpack_from(">Q", state, at)
        at += 16
        total -= size
    return at
