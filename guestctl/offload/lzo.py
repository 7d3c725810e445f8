"""LZO1X, as distcc's `,lzo` has it, by the library that QEMU uses too (Debian: liblzo2-2)."""

from __future__ import annotations

import ctypes
from functools import lru_cache

from guestctl.errors import HostLacks, OffloadError

__all__ = ["compress", "expand", "library", "require"]

_LIBRARY = "liblzo2.so.2"
_WORK = 16384 * 8  # LZO1X_1_MEM_COMPRESS with pointers of 64 bits
_FIRST_GUESS = 8  # times the compressed size
_OK, _OUTPUT_OVERRUN = 0, -5


def require() -> None:
    """Raises HostLacks where the library is missing."""
    library()


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """Raises HostLacks."""
    try:
        found = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise HostLacks(
            f"a compile host with ,lzo needs {_LIBRARY}", hint="Debian's package liblzo2-2 has it"
        ) from None
    size = ctypes.POINTER(ctypes.c_size_t)
    for name in ("lzo1x_1_compress", "lzo1x_decompress_safe"):
        function = getattr(found, name)
        function.restype = ctypes.c_int
        function.argtypes = (
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, size, ctypes.c_char_p
        )  # fmt: skip
    return found


def compress(data: bytes) -> bytes:
    """Nothing is nothing; raises HostLacks."""
    if not data:
        return b""
    room = ctypes.create_string_buffer(len(data) + len(data) // 16 + 67)
    size = ctypes.c_size_t(len(room))
    work = ctypes.create_string_buffer(_WORK)
    library().lzo1x_1_compress(data, len(data), room, ctypes.byref(size), work)
    return room.raw[: size.value]


def expand(data: bytes, most: int) -> bytes:
    """What was compressed, of at most `most` bytes; raises OffloadError, HostLacks."""
    if not data:
        return b""
    guess = min(most, _FIRST_GUESS * len(data))
    while True:
        room = ctypes.create_string_buffer(guess)
        size = ctypes.c_size_t(guess)
        status = library().lzo1x_decompress_safe(data, len(data), room, ctypes.byref(size), None)
        if status == _OK:
            return room.raw[: size.value]
        if status != _OUTPUT_OVERRUN or guess >= most:
            raise OffloadError("what a compile host has compressed cannot be expanded")
        guess = min(most, 2 * guess)
