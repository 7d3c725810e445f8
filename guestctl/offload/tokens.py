"""Tokens of distcc's protocol: four letters, eight hexadecimal digits, and the bytes of a value.

Format: doc/protocol-1.txt and doc/protocol-2.txt of distcc.
"""

from __future__ import annotations

import re
import socket

from guestctl.errors import ProtocolError

__all__ = ["TokenReader", "token"]

_TOKEN = re.compile(rb"([A-Z]{4})([0-9a-f]{8})")


def token(name: bytes, value: bytes) -> bytes:
    """A token with a value."""
    return b"%s%08x%s" % (name, len(value), value)


class TokenReader:
    """Takes tokens from a socket; raises ProtocolError for what is none."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def number(self, name: bytes) -> int:
        match = _TOKEN.fullmatch(self._take(12))
        if match is None or match[1] != name:
            raise ProtocolError(f"distcc did not send {name.decode()}")
        return int(match[2], 16)

    def value(self, name: bytes, most: int) -> bytes:
        size = self.number(name)
        if size > most:
            raise ProtocolError(f"{size} bytes of {name.decode()}")
        return self._take(size)

    def _take(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            data = self._connection.recv(min(size - len(parts), 1 << 16))
            if not data:
                raise ProtocolError("distcc's words are cut off")
            parts += data
        return bytes(parts)
