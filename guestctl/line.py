"""A stream through a line that loses, changes and repeats bytes, as a state machine without I/O.

Below the frames of the agent protocol, which do not know of it: docs/protocol.md, "Serial lines".
guest-init/line.c is the other implementation, tests/vectors/line.txt binds both.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from dataclasses import dataclass

from guestctl.pipe import QUEUE, Pipe

__all__ = ["DATA", "PAYLOAD", "SYNC", "WINDOW", "ZEROS", "Line", "Packet", "decode", "encode"]

PAYLOAD = 512
WINDOW = 32
SYNC, DATA, ZEROS = 1, 2, 3

_HEADER = struct.Struct("<BIIHHI")
_CHECK = struct.Struct("<I")
_RUN_MIN = 64
_RUN_MAX = 65_536
_LONGEST = _HEADER.size + PAYLOAD + _CHECK.size + 8
# Seconds: between signs of life to a peer that has not answered, and for retransmission.
_SYNC_EVERY = 0.2
_FIRST, _LEAST, _MOST = 1.0, 0.05, 3.0


@dataclass(frozen=True, slots=True)
class Packet:
    """`seen` has bit i set when the packet `ack` + 1 + i has come already."""

    kind: int
    sender: int
    receiver: int
    number: int = 0
    ack: int = 0
    seen: int = 0
    payload: bytes = b""


def encode(packet: Packet) -> bytes:
    """The packet as it goes on the line: checked, without zeros within, ended by one."""
    data = _HEADER.pack(
        packet.kind, packet.sender, packet.receiver, packet.number, packet.ack, packet.seen
    )
    data += packet.payload
    return _stuffed(data + _CHECK.pack(zlib.crc32(data))) + b"\0"


def decode(data: bytes) -> Packet | None:
    """The packet between two zeros; None for what is none."""
    whole = _unstuffed(data)
    if whole is None or not _HEADER.size + 4 <= len(whole) <= _HEADER.size + 4 + PAYLOAD:
        return None
    body = whole[:-4]
    if _CHECK.unpack(whole[-4:])[0] != zlib.crc32(body):
        return None
    kind, sender, receiver, number, ack, seen = _HEADER.unpack_from(body)
    packet = Packet(kind, sender, receiver, number, ack, seen, body[_HEADER.size :])
    sound = {
        SYNC: not packet.payload,
        DATA: True,
        ZEROS: len(packet.payload) == 4 and _run(packet.payload) <= _RUN_MAX,
    }
    return packet if packet.sender and sound.get(packet.kind) else None


def _run(payload: bytes) -> int:
    return int.from_bytes(payload, "little")


def _stuffed(data: bytes) -> bytes:
    """Consistent overhead byte stuffing (Cheshire and Baker, 1999): no zero is left."""
    out = bytearray()
    for piece in data.split(b"\0"):
        at = 0
        while len(piece) - at >= 254:
            out.append(255)
            out += piece[at : at + 254]
            at += 254
        out.append(len(piece) - at + 1)
        out += piece[at:]
    return bytes(out)


def _unstuffed(data: bytes) -> bytes | None:
    out = bytearray()
    at = 0
    while at < len(data):
        code = data[at]
        if not code or at + code > len(data):
            return None
        out += data[at + 1 : at + code]
        at += code
        if code < 255 and at < len(data):
            out.append(0)
    # A full block that ends the data has an empty one behind it.
    return bytes(out)


@dataclass(slots=True)
class _Sent:
    number: int
    kind: int
    payload: bytes
    at: float
    again: bool = False
    seen: bool = False


class Line(Pipe):
    """One end. `me` is a random number but 0, new for each start.

    What an end had sent is dropped when the other one starts anew: the stream is cut, as by a new
    peer, which is what the frames above are made for.
    """

    def __init__(self, me: int) -> None:
        super().__init__()
        self._me = me
        self._peer = 0
        self._raw = bytearray()
        self._sync_at = 0.0
        self._sync_owed = True
        self._ack_owed = False
        self._wait = self._round = _FIRST
        self._measured = False
        self._reset()

    @classmethod
    def new(cls) -> Line:
        """One with a number that no earlier one had."""
        return cls(int.from_bytes(os.urandom(4), "little") or 1)

    def _reset(self) -> None:
        self._queue = bytearray()
        self._sent: deque[_Sent] = deque()
        self._next = 0
        self._expected = 0
        self._early: dict[int, tuple[int, bytes]] = {}

    @property
    def connected(self) -> bool:
        return self._peer != 0

    def take(self, most: int) -> bytes:
        data = super().take(most)
        self._ack_owed |= self._deliver()
        return data

    # --- the line's side --------------------------------------------------------------------

    def feed(self, data: bytes, now: float) -> None:
        self._raw += data
        *whole, rest = self._raw.split(b"\0")
        # Without an end for so long it is noise.
        self._raw = rest if len(rest) <= _LONGEST else bytearray()
        for piece in whole:
            packet = decode(bytes(piece)) if piece else None
            if packet:
                self._packet(packet, now)

    def output(self, now: float) -> bytes:
        out = []
        if self._sync_owed or (not self._peer and now >= self._sync_at):
            out.append(encode(Packet(SYNC, self._me, self._peer)))
            self._sync_at = now + _SYNC_EVERY
            self._sync_owed = False
        if self._peer:
            packets = [*self._due(now), *self._fresh(now)]
            out += [self._made(sent) for sent in packets]
            if self._ack_owed and not packets:
                out.append(self._made(None))
            self._ack_owed = False
        return b"".join(out)

    def deadline(self) -> float | None:
        if not self._peer:
            return self._sync_at
        return self._sent[0].at + self._wait if self._sent else None

    # --- sending ----------------------------------------------------------------------------

    def _made(self, sent: _Sent | None) -> bytes:
        seen = 0
        for number in self._early:
            if number != self._expected:
                seen |= 1 << ((number - self._expected - 1) & 0xFFFF)
        kind, number, payload = DATA, self._next, b""
        if sent:
            kind, number, payload = sent.kind, sent.number, sent.payload
        return encode(Packet(kind, self._me, self._peer, number, self._expected, seen, payload))

    def _due(self, now: float) -> list[_Sent]:
        """What must go again: it was overtaken, or nothing has been heard of it for too long."""
        last = max((at for at, sent in enumerate(self._sent) if sent.seen), default=0)
        found = [
            sent
            for at, sent in enumerate(self._sent)
            if not sent.seen and at < last and now - sent.at >= self._round
        ]
        if self._sent and now - self._sent[0].at >= self._wait:
            self._wait = min(_MOST, self._wait * 2)
            found = found or [self._sent[0]]
        for sent in found:
            sent.at, sent.again = now, True
        return found

    def _fresh(self, now: float) -> list[_Sent]:
        found = []
        while self._queue and len(self._sent) < WINDOW:
            kind, payload = self._cut()
            sent = _Sent(self._next, kind, payload, now)
            self._next = (self._next + 1) & 0xFFFF
            self._sent.append(sent)
            found.append(sent)
        return found

    def _cut(self) -> tuple[int, bytes]:
        """The next packet's content: a run of zeros, of which a session begins with many, is told
        by its length."""
        queue = self._queue
        if not any(queue[:_RUN_MIN]) and len(queue) >= _RUN_MIN:
            head = bytes(queue[:_RUN_MAX])
            run = len(head) - len(head.lstrip(b"\0"))
            del queue[:run]
            return ZEROS, run.to_bytes(4, "little")
        # Not beyond where a run begins.
        at = bytes(queue[: PAYLOAD + _RUN_MIN]).find(bytes(_RUN_MIN))
        size = min(PAYLOAD, at) if at > 0 else PAYLOAD
        payload = bytes(queue[:size])
        del queue[:size]
        return DATA, payload

    # --- receiving --------------------------------------------------------------------------

    def _packet(self, packet: Packet, now: float) -> None:
        if packet.kind == SYNC:
            if packet.sender != self._peer:
                self._peer = packet.sender
                self._reset()
            self._sync_owed |= packet.receiver != self._me
            self._ack_owed |= packet.receiver == self._me
        elif packet.sender != self._peer or packet.receiver != self._me:
            # It does not know that one of us is new.
            self._sync_owed = True
        else:
            self._acknowledged(packet, now)
            self._received(packet)

    def _acknowledged(self, packet: Packet, now: float) -> None:
        while self._sent and (packet.ack - self._sent[0].number - 1) & 0xFFFF < WINDOW:
            sent = self._sent.popleft()
            if not sent.again and not sent.seen:
                self._measure(now - sent.at)
        for sent in self._sent:
            ahead = (sent.number - packet.ack - 1) & 0xFFFF
            if ahead < WINDOW and packet.seen >> ahead & 1 and not sent.seen:
                sent.seen = True

    def _measure(self, seconds: float) -> None:
        """A packet's way there and back: how long to wait for one follows it."""
        self._round = seconds if not self._measured else 0.8 * self._round + 0.2 * seconds
        self._measured = True
        self._wait = min(_MOST, max(_LEAST, 3 * self._round))

    def _received(self, packet: Packet) -> None:
        if not packet.payload:
            return
        self._ack_owed = True
        ahead = (packet.number - self._expected) & 0xFFFF
        if ahead < WINDOW:
            self._early[packet.number] = (packet.kind, packet.payload)
            self._deliver()

    def _deliver(self) -> bool:
        """What is in order goes to the caller, as far as there is room; says whether any did."""
        before = self._expected
        while self._expected in self._early and len(self._inbox) < QUEUE:
            kind, payload = self._early.pop(self._expected)
            self._inbox += bytes(_run(payload)) if kind == ZEROS else payload
            self._expected = (self._expected + 1) & 0xFFFF
        return self._expected != before
