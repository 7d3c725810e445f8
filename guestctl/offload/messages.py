"""What the stub in the guest and the host say to each other. Pure; docs/offload.md has the table.

The guest is not trusted: every size is bounded here, and what does not fit raises ProtocolError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from guestctl.errors import OffloadError, ProtocolError

__all__ = ["IN_PLACE", "MESSAGE_MAX", "Decoder", "Request", "message", "number", "pieces"]

MESSAGE_MAX = 1 << 16
IN_PLACE = 1
_HEADER = struct.Struct("<cI")
_REQUEST_MAX = 1 << 20
# Of the request, in the stub's order; A and E may be repeated.
_ONCE = {b"N": "name", b"P": "program", b"C": "cwd", b"U": "umask"}


def message(kind: bytes, payload: bytes = b"") -> bytes:
    """One message."""
    return _HEADER.pack(kind, len(payload)) + payload


def number(kind: bytes, value: int) -> bytes:
    """A message with a number of 32 bits."""
    return message(kind, struct.pack("<I", value))


def pieces(kind: bytes, data: bytes) -> Iterator[bytes]:
    """`data` in as many messages as it needs; none for nothing."""
    for at in range(0, len(data), MESSAGE_MAX):
        yield message(kind, data[at : at + MESSAGE_MAX])


class Decoder:
    """Takes bytes as they come and gives whole messages."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Kinds and payloads of the messages that are complete; raises ProtocolError."""
        self._held += data
        while len(self._held) >= _HEADER.size:
            kind, size = _HEADER.unpack_from(self._held)
            if size > MESSAGE_MAX:
                raise ProtocolError(f"a message of {size} bytes")
            end = _HEADER.size + size
            if len(self._held) < end:
                return
            payload = bytes(self._held[_HEADER.size : end])
            del self._held[:end]
            yield kind, payload


@dataclass(frozen=True)
class Request:
    """A call of a tool, as the stub has it.

    `program` is the absolute path of what would run if the stub were not there. The rest are the
    process's own.
    """

    name: bytes
    program: bytes
    cwd: bytes
    umask: int
    argv: tuple[bytes, ...]
    environment: Mapping[bytes, bytes]

    @property
    def path(self) -> list[bytes]:
        """The folders of PATH."""
        return self.environment.get(b"PATH", b"").split(b":")

    @classmethod
    def collect(cls, messages: Iterator[tuple[bytes, bytes]]) -> Request:
        """Takes messages up to GO; raises ProtocolError for what cannot be a call, and OffloadError
        when there is none: its caller has left, or keeps what is too large for a request.
        """
        facts: dict[str, bytes] = {}
        argv: list[bytes] = []
        environment: dict[bytes, bytes] = {}
        size = 0
        for kind, payload in messages:
            size += len(payload) + _HEADER.size
            if size > _REQUEST_MAX or (b"\0" in payload and kind != b"U"):
                raise ProtocolError("a request that cannot be a call")
            if kind == b"A":
                argv.append(payload)
            elif kind == b"E":
                # The first counts, as for getenv.
                name, _equals, value = payload.partition(b"=")
                environment.setdefault(name, value)
            elif kind in _ONCE:
                facts[_ONCE[kind]] = payload
            elif kind == b"G":
                break
            else:
                raise ProtocolError(f"an unexpected message {kind!r}")
        else:
            if not size:
                raise OffloadError("its caller has asked for nothing")
            raise ProtocolError("a request that is cut off")
        if not argv or set(facts) != set(_ONCE.values()) or len(facts["umask"]) != 4:
            raise ProtocolError("a request with parts missing")
        (umask,) = struct.unpack("<I", facts["umask"])
        return cls(
            facts["name"], facts["program"], facts["cwd"], umask & 0o777, tuple(argv), environment
        )
