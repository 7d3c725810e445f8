"""The host's side of one session with an agent, as a state machine without I/O.

`feed(bytes)` gives events, the other methods give bytes to send. What the agent does wrong raises
ProtocolError; what the caller does wrong raises RuntimeError. docs/protocol.md has the rules.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from guestctl import wire
from guestctl.errors import ProtocolError
from guestctl.events import (
    Credited,
    Ended,
    Event,
    Exited,
    Logged,
    NotStarted,
    Opened,
    Output,
    Ponged,
    Replied,
    Started,
    StreamReset,
    Welcomed,
)
from guestctl.flow import Flow
from guestctl.spec import Command, Usage
from guestctl.wire import Channel, Op, Tag, Type, encode

__all__ = ["STAGE_EXEC", "Session"]

_STARTED = struct.Struct("<I2Q")
_EXIT = struct.Struct("<HHI8Q")
_MEMORY = struct.Struct("<4Q")
_STAGES = {
    1: "its description",
    2: "resource limits",
    3: "namespaces",
    4: "the root directory",
    5: "the working directory",
    6: "user and group",
    7: "exec",
    8: "resources of the guest",
}
STAGE_EXEC = 7
SERVICE_BIT = 0x80000000
_SERVICES_MAX = 256
_NAME_MAX = 64
_TEXT_MAX = 1024


class Session:
    """One session. `nonce` is 16 random bytes, `orphan` the time in ms that jobs outlive it.

    `silence` is the time in s without a byte from us after which the agent takes us for gone; 0
    where the channel tells it.
    """

    def __init__(self, nonce: bytes, orphan: int = 0, silence: int = 0) -> None:
        if len(nonce) != 16:
            raise RuntimeError("a nonce has 16 bytes")
        self._nonce = nonce
        self._orphan = orphan
        self._silence = silence
        self._decoder = wire.Decoder(nonce)
        self._streams: dict[int, Flow] = {}
        self._requests: set[int] = set()
        self._taken: set[int] = set()
        self._next_id = 1
        self._welcomed = False

    # --- to the guest -----------------------------------------------------------------------

    def hello(self, orderly: bool = False) -> bytes:
        """What a session begins with; `orderly` says that none before it has left half a frame."""
        payload = struct.pack("<HHI", wire.VERSION, self._silence, self._orphan) + self._nonce
        return (b"" if orderly else wire.FILLER) + encode(Type.HELLO, payload=payload)

    def start(self, command: Command) -> tuple[int, bytes]:
        """The id of a new job, and the bytes that start it."""
        records = wire.command_records(command)
        job = self._take_id()
        self._streams[job] = Flow.of_job()
        pieces = [
            encode(Type.SPEC, job, payload=records[at : at + wire.PAYLOAD_MAX])
            for at in range(0, len(records), wire.PAYLOAD_MAX)
        ]
        return job, b"".join(pieces) + encode(Type.EXEC, job)

    def attach(self, job: int) -> bytes:
        """Takes an orphan over; the agent answers as for a new job."""
        self._streams[job] = Flow.of_job()
        return encode(Type.ATTACH, job)

    def forget(self, job: int) -> bytes:
        """The job's end has been taken, or nobody wants to know of it: it is killed if it runs."""
        return encode(Type.FORGET, job)

    def knows(self, stream: int) -> bool:
        """Whether the job or service stream is still under way."""
        return stream in self._streams

    def room(self, stream: int) -> int:
        """How many bytes of stdin (or to a service stream) may be sent now."""
        known = self._streams.get(stream)
        return known.room() if known else 0

    def send(self, stream: int, data: bytes) -> bytes:
        """Stdin for a job, within `room`; nothing for a stream that has ended."""
        known = self._streams.get(stream)
        if known is None or not data:
            return b""
        known.sent(len(data))
        return b"".join(
            encode(Type.DATA, stream, Channel.STDIN, data[at : at + wire.PAYLOAD_MAX])
            for at in range(0, len(data), wire.PAYLOAD_MAX)
        )

    def send_eof(self, stream: int) -> bytes:
        """The end of stdin; a second one is nothing."""
        known = self._streams.get(stream)
        if known is None or not known.stdin_open:
            return b""
        known.stdin_open = False
        self._close(stream, known)
        return encode(Type.EOF, stream, Channel.STDIN)

    def consumed(self, stream: int, channel: int, count: int) -> bytes:
        """Credit for output that has been taken."""
        known = self._streams.get(stream)
        if known is None or not count:
            return b""
        known.consumed(channel, count)
        return encode(Type.CREDIT, stream, channel, struct.pack("<I", count))

    def signal(self, job: int, number: int) -> bytes:
        return encode(Type.SIGNAL, job, payload=struct.pack("<I", number))

    def kill(self, job: int) -> bytes:
        return encode(Type.KILL, job)

    def window(self, job: int, rows: int, columns: int) -> bytes:
        """The new size of a job's terminal."""
        return encode(Type.WINDOW, job, payload=wire.window_size(rows, columns))

    def request(self, op: Op, records: Iterable[tuple[int, bytes]] = ()) -> tuple[int, bytes]:
        """The id of a new request, and its bytes."""
        payload = struct.pack("<HH", op, 0) + wire.pack_records(records)
        request = self._take_id()
        self._requests.add(request)
        return request, encode(Type.REQUEST, request, payload=payload)

    def ping(self, token: int) -> bytes:
        return encode(Type.PING, payload=struct.pack("<Q", token))

    def accept(self, stream: int) -> bytes:
        """Accepts a service stream that the guest has opened."""
        return encode(Type.CREDIT, stream, 0, struct.pack("<I", 0))

    def refuse(self, stream: int, errno: int, text: str) -> bytes:
        """Refuses or breaks off a service stream."""
        self._streams.pop(stream, None)
        return encode(Type.RESET, stream, payload=struct.pack("<I", errno) + text.encode())

    # --- from the guest ---------------------------------------------------------------------

    def feed(self, data: bytes) -> list[Event]:
        """The events in `data`."""
        return [event for frame in self._decoder.feed(data) for event in self._event(frame)]

    def _event(self, frame: wire.Frame) -> Iterable[Event]:
        if not self._welcomed and frame.type != Type.WELCOME:
            raise ProtocolError(f"a frame of type {frame.type:#x} came before the welcome")
        if frame.id >= SERVICE_BIT and frame.id not in self._streams and frame.type != Type.OPEN:
            # It may have crossed our refusal, or the end of the stream.
            return []
        handler = _HANDLERS.get(frame.type)
        if handler is None:
            raise ProtocolError(f"a frame of type {frame.type:#x} is not the guest's to send")
        try:
            return list(handler(self, frame))
        except struct.error:
            raise ProtocolError(f"a frame of type {frame.type:#x} is too short") from None

    def _advance(self, frame: wire.Frame) -> Flow:
        """Moves the frame's stream on, or raises where the frame has no place."""
        stream = self._streams.get(frame.id)
        if stream is None:
            raise ProtocolError(f"a frame of type {frame.type:#x} for {frame.id}, unknown")
        stream.advance(frame.type)
        if stream.state == "gone":
            del self._streams[frame.id]
        return stream

    def _welcome(self, frame: wire.Frame) -> Iterable[Event]:
        (version,) = struct.unpack_from("<16xH", frame.payload)
        if self._welcomed:
            raise ProtocolError("a second welcome")
        if version != wire.VERSION:
            raise ProtocolError(
                f"the agent speaks version {version}, not {wire.VERSION}",
                hint="build the image anew: guestctl image build ARCH",
            )
        self._welcomed = True
        records = list(wire.unpack_records(frame.payload[20:]))
        texts = {tag: _text(value) for tag, value in records}
        jobs = tuple(struct.unpack("<I", value)[0] for tag, value in records if tag == Tag.JOB)
        if any(not 0 < job < SERVICE_BIT for job in jobs):
            raise ProtocolError("a job with an id that no host gives")
        # An orphan's id must not be given to another job.
        self._taken.update(jobs)
        self._next_id = max(jobs, default=0) + 1
        yield Welcomed(
            texts.get(Tag.AGENT, ""), texts.get(Tag.BOOT_ID, ""), texts.get(Tag.MACHINE, ""), jobs
        )

    def _started(self, frame: wire.Frame) -> Iterable[Event]:
        self._advance(frame)
        yield Started(frame.id, *_STARTED.unpack(frame.payload))

    def _failed(self, frame: wire.Frame) -> Iterable[Event]:
        self._advance(frame)
        code, stage, _zero = struct.unpack_from("<IHH", frame.payload)
        text = _text(frame.payload[8:])
        yield NotStarted(frame.id, code, stage, f"{_STAGES.get(stage, 'start')}: {text}")

    def _data(self, frame: wire.Frame) -> Iterable[Event]:
        self._advance(frame).received(frame.channel, len(frame.payload))
        yield Output(frame.id, frame.channel, frame.payload)

    def _eof(self, frame: wire.Frame) -> Iterable[Event]:
        stream = self._advance(frame)
        stream.ended(frame.channel)
        self._close(frame.id, stream)
        yield Ended(frame.id, frame.channel)

    def _credit(self, frame: wire.Frame) -> Iterable[Event]:
        stream = self._advance(frame)
        (count,) = struct.unpack("<I", frame.payload)
        stream.credited(count)
        yield Credited(frame.id, count)

    def _exit(self, frame: wire.Frame) -> Iterable[Event]:
        self._advance(frame).exited()
        kind, _zero, value, *numbers = _EXIT.unpack(frame.payload)
        if kind > 1:
            raise ProtocolError(f"an exit of unknown kind {kind}")
        micro = [number / 1e6 for number in numbers[:3]]
        yield Exited(frame.id, kind == 1, value, Usage(*micro, *numbers[3:]))

    def _reply(self, frame: wire.Frame) -> Iterable[Event]:
        if frame.id not in self._requests:
            raise ProtocolError(f"a reply to request {frame.id}, which is not waiting")
        self._requests.remove(frame.id)
        (code,) = struct.unpack_from("<I", frame.payload)
        found = dict(wire.unpack_records(frame.payload[4:]))
        memory = _MEMORY.unpack(found[Tag.MEMORY]) if Tag.MEMORY in found else ()
        text = _text(found.get(Tag.TEXT, b""))
        yield Replied(frame.id, code, text, memory)

    def _open(self, frame: wire.Frame) -> Iterable[Event]:
        if frame.id < SERVICE_BIT or frame.id in self._streams:
            raise ProtocolError(f"a service stream with id {frame.id:#x}")
        if sum(id_ >= SERVICE_BIT for id_ in self._streams) >= _SERVICES_MAX:
            raise ProtocolError(f"more than {_SERVICES_MAX} service streams")
        self._streams[frame.id] = Flow.of_service()
        service, _zero, records = frame.payload.partition(b"\0")
        if len(service) > _NAME_MAX:
            raise ProtocolError("the name of a service is too long")
        yield Opened(frame.id, service, dict(wire.unpack_records(records)))

    def _reset(self, frame: wire.Frame) -> Iterable[Event]:
        self._advance(frame)
        (code,) = struct.unpack_from("<I", frame.payload)
        yield StreamReset(frame.id, code, _text(frame.payload[4:]))

    def _pong(self, frame: wire.Frame) -> Iterable[Event]:
        yield Ponged(*struct.unpack("<Q", frame.payload))

    def _log(self, frame: wire.Frame) -> Iterable[Event]:
        yield Logged(_text(frame.payload))

    def _close(self, id_: int, stream: Flow) -> None:
        if stream.over:
            self._streams.pop(id_, None)

    def _take_id(self) -> int:
        while True:
            taken = self._next_id if self._next_id < SERVICE_BIT else 1
            self._next_id = taken + 1
            if not any(taken in ids for ids in (self._streams, self._requests, self._taken)):
                return taken


def _text(data: bytes) -> str:
    """A guest's words for people: one line, of a bounded length, that no terminal obeys."""
    text = data[:_TEXT_MAX].decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


_HANDLERS: dict[int, Callable[[Session, wire.Frame], Iterable[Event]]] = {
    Type.WELCOME: Session._welcome,
    Type.STARTED: Session._started,
    Type.FAILED: Session._failed,
    Type.DATA: Session._data,
    Type.EOF: Session._eof,
    Type.CREDIT: Session._credit,
    Type.EXIT: Session._exit,
    Type.REPLY: Session._reply,
    Type.OPEN: Session._open,
    Type.RESET: Session._reset,
    Type.PONG: Session._pong,
    Type.LOG: Session._log,
}
