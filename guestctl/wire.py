"""Frames and records of the agent protocol (docs/protocol.md): bytes in, values out, no I/O."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from guestctl.errors import ProtocolError, UsageError
from guestctl.spec import Command

__all__ = [
    "CREDIT_WINDOW",
    "FILLER",
    "PAYLOAD_MAX",
    "SPEC_MAX",
    "VERSION",
    "Channel",
    "Decoder",
    "Frame",
    "Op",
    "Tag",
    "Type",
    "command_records",
    "encode",
    "pack_records",
    "unpack_records",
    "window_size",
]

VERSION = 3
PAYLOAD_MAX = 65_536
SPEC_MAX = 2_097_152
CREDIT_WINDOW = 262_144
FILLER = bytes(131_072)
END = 0x5A

_HEADER = struct.Struct("<BBHII")
_RECORD = struct.Struct("<BI")
_U64_MAX = (1 << 64) - 1


class Type(IntEnum):
    HELLO = 0x01
    SPEC = 0x02
    EXEC = 0x03
    SIGNAL = 0x04
    KILL = 0x05
    REQUEST = 0x06
    PING = 0x07
    ATTACH = 0x08
    WINDOW = 0x09
    FORGET = 0x0A
    DATA = 0x10
    EOF = 0x11
    CREDIT = 0x12
    RESET = 0x13
    WELCOME = 0x41
    STARTED = 0x42
    EXIT = 0x43
    FAILED = 0x44
    REPLY = 0x45
    OPEN = 0x46
    PONG = 0x47
    LOG = 0x48


class Channel(IntEnum):
    STDIN = 0
    STDOUT = 1
    STDERR = 2


class Op(IntEnum):
    PREPARE = 1
    MOUNT = 2
    UNMOUNT = 3
    SYNC = 4
    CLOCK = 5
    POWEROFF = 6
    STATUS = 7
    RENEW = 8


class Tag(IntEnum):
    ARG = 1
    ENV = 2
    CWD = 3
    ROOT = 4
    CREDENTIALS = 5
    RLIMIT = 6
    UMASK = 7
    TTY = 8
    CLOCK = 16
    SEED = 17
    HOSTNAME = 18
    SWAP = 19
    TAG = 20
    TARGET = 21
    OPTIONS = 22
    KIND = 23
    AGENT = 32
    BOOT_ID = 33
    MACHINE = 34
    JOB = 35
    TEXT = 36
    MEMORY = 37
    CALLER_ROOT = 40
    ROOT_DEVICE = 41
    MOUNTS = 42
    CHANGED = 43
    LAYER = 44


_TYPES = frozenset(Type)


@dataclass(frozen=True, slots=True)
class Frame:
    type: int
    id: int = 0
    channel: int = 0
    payload: bytes = b""


def encode(type_: int, id_: int = 0, channel: int = 0, payload: bytes = b"") -> bytes:
    """The bytes of one frame; raises ValueError for a payload over the limit."""
    if len(payload) > PAYLOAD_MAX:
        raise ValueError(f"a payload holds at most {PAYLOAD_MAX} bytes, not {len(payload)}")
    header = _HEADER.pack(type_, channel, 0, id_, len(payload))
    return b"".join((header, payload, b"\x5a"))


def pack_records(records: Iterable[tuple[int, bytes]]) -> bytes:
    """Tags and values as one run of bytes."""
    return b"".join(_RECORD.pack(tag, len(value)) + value for tag, value in records)


def unpack_records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The tags and values in `data`; raises ProtocolError where one is cut off."""
    at = 0
    while at < len(data):
        if at + _RECORD.size > len(data):
            raise ProtocolError("a record is cut off")
        tag, size = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if at + size > len(data):
            raise ProtocolError("a record is longer than what holds it")
        yield tag, data[at : at + size]
        at += size


def window_size(rows: int, columns: int) -> bytes:
    """A terminal's size as TTY and WINDOW have it; what does not fit is the largest that does."""
    return struct.pack("<4H", min(rows, 0xFFFF), min(columns, 0xFFFF), 0, 0)


def command_records(command: Command) -> bytes:
    """A command's description for SPEC frames.

    Raises UsageError when it is over the protocol's limit, or holds what no exec can take.
    """
    for text in (*command.argv, *command.env, command.cwd, command.root or b""):
        if b"\0" in text:
            raise UsageError("an argument, variable or path holds a NUL byte")
    if not command.argv:
        raise UsageError("there is no command to run")
    records = [(Tag.ARG, arg) for arg in command.argv]
    records += [(Tag.ENV, variable) for variable in command.env]
    records += [
        (Tag.CWD, command.cwd),
        (Tag.CREDENTIALS, struct.pack("<II", command.uid, command.gid)),
        (Tag.UMASK, struct.pack("<I", command.umask)),
    ]
    if command.root is not None:
        records.append((Tag.ROOT, command.root))
    if command.window is not None:
        records.append((Tag.TTY, window_size(*command.window)))
    for number, (soft, hard) in sorted(command.limits.items()):
        records.append((Tag.RLIMIT, struct.pack("<IQQ", number, soft & _U64_MAX, hard & _U64_MAX)))
    data = pack_records(records)
    if len(data) > SPEC_MAX:
        raise UsageError(
            f"arguments and environment take {len(data):,} bytes",
            hint=f"the limit is {SPEC_MAX:,} bytes; pass large data in a file or on stdin",
        )
    return data


class Decoder:
    """Cuts a stream of bytes into frames.

    With a `nonce` it discards everything before the WELCOME that carries it: what an earlier
    session left in the pipe. Memory is bounded by one frame, and by one chunk while it hunts.
    """

    def __init__(self, nonce: bytes = b"") -> None:
        self._buffer = bytearray()
        self._nonce = nonce

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes; raises ProtocolError at a broken one."""
        self._buffer += data
        if self._nonce and not self._find_welcome():
            return []
        frames = []
        at = 0
        buffer = self._buffer
        size = len(buffer)
        while at < size:
            if not buffer[at]:
                at += 1
                continue
            if size - at < _HEADER.size:
                break
            type_, channel, reserved, id_, length = _HEADER.unpack_from(buffer, at)
            if type_ not in _TYPES or reserved or length > PAYLOAD_MAX:
                raise ProtocolError(f"a broken frame header: {bytes(buffer[at : at + 12]).hex()}")
            end = at + _HEADER.size + length
            if end >= size:
                break
            if buffer[end] != END:
                raise ProtocolError(f"a frame of type {type_:#x} has a wrong end mark")
            with memoryview(buffer) as view:
                frames.append(Frame(type_, id_, channel, bytes(view[at + _HEADER.size : end])))
            at = end + 1
        del buffer[:at]
        return frames

    def _find_welcome(self) -> bool:
        """Drops what comes before the awaited WELCOME; says whether it has come."""
        at = self._buffer.find(self._nonce)
        start = at - _HEADER.size
        if at < 0:
            # Keep what may be the beginning of it.
            del self._buffer[: max(0, len(self._buffer) - _HEADER.size - len(self._nonce))]
            return False
        if start < 0 or self._buffer[start] != Type.WELCOME:
            raise ProtocolError("the nonce came back outside of a WELCOME")
        del self._buffer[:start]
        self._nonce = b""
        return True
