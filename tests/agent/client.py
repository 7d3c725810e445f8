"""A second, minimal encoder and decoder of docs/protocol.md, independent of guestctl.wire.

It is there to check the agent against the document and not against our own host side.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

HELLO, SPEC, EXEC, SIGNAL, KILL, REQUEST, PING, ATTACH, RESIZE, FORGET = range(1, 11)
DATA, EOF, CREDIT, RESET = range(0x10, 0x14)
WELCOME, STARTED, EXIT, FAILED, REPLY, OPEN, PONG, LOG = range(0x41, 0x49)

PREPARE, MOUNT, UNMOUNT, SYNC, CLOCK, POWEROFF, STATUS, RENEW = range(1, 9)

ARG, ENV, CWD, ROOT, CREDENTIALS, RLIMIT, UMASK, TTY = range(1, 9)
R_CLOCK, SEED, HOSTNAME, SWAP, TAG, TARGET, OPTIONS = range(16, 23)
AGENT, BOOT_ID, MACHINE, JOB, TEXT, MEMORY = range(32, 38)

WINDOW = 262144
FILLER = bytes(131072)


def frame(kind: int, ident: int = 0, payload: bytes = b"", channel: int = 0) -> bytes:
    return struct.pack("<BBHII", kind, channel, 0, ident, len(payload)) + payload + b"\x5a"


def record(tag: int, value: bytes) -> bytes:
    return struct.pack("<BI", tag, len(value)) + value


def records(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        tag, size = struct.unpack_from("<BI", data)
        assert len(data) >= 5 + size
        found.append((tag, data[5 : 5 + size]))
        data = data[5 + size :]
    return found


@dataclass
class Exit:
    kind: int
    value: int
    wall: int
    user: int
    system: int
    resident: int
    minor: int
    major: int
    blocks_in: int
    blocks_out: int


@dataclass
class Job:
    """What has been heard of one job or service stream."""

    started: int | None = None
    taken: list[int] = field(default_factory=list)
    failed: tuple[int, int, str] | None = None
    exit: Exit | None = None
    out: dict[int, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    eof: set[int] = field(default_factory=set)
    credit: int = WINDOW
    reset: tuple[int, str] | None = None
    name: bytes | None = None

    @property
    def over(self) -> bool:
        return self.exit is not None or self.failed is not None


class Client:
    """One session. `credit` says whether what arrives is credited at once, `forget` whether the
    end of a job is."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.setblocking(False)
        self.jobs: dict[int, Job] = defaultdict(Job)
        self.replies: dict[int, tuple[int, list[tuple[int, bytes]]]] = {}
        self.pongs: list[int] = []
        self.logs: list[str] = []
        self.welcome: list[tuple[int, bytes]] | None = None
        self.nonce: bytes | None = None
        self.buffer = bytearray()
        self.pending = bytearray()
        self.credit = True
        self.forget = True
        self.next_id = 1
        self.closed = False
        self.frames: list[tuple[int, int, int, int]] = []
        self.on_open: Callable[[int, bytes], None] | None = None

    # -- sending

    def send(self, data: bytes) -> None:
        self.pending += data
        self.step(0)

    def hello(self, orphan: int = 60000, *, wait: bool = True) -> None:
        self.nonce = os.urandom(16)
        self.welcome = None
        self.pending += FILLER + frame(HELLO, 0, struct.pack("<HHI", 3, 0, orphan) + self.nonce)
        if wait:
            self.until(lambda: self.welcome is not None)

    def ids(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def request(self, op: int, *recs: tuple[int, bytes], timeout: float = 60.0) -> int:
        ident = self.ids()
        body = b"".join(record(t, v) for t, v in recs)
        self.send(frame(REQUEST, ident, struct.pack("<HH", op, 0) + body))
        self.until(lambda: ident in self.replies, timeout)
        return self.replies[ident][0]

    def describe(self, argv: Iterable[bytes], *recs: tuple[int, bytes]) -> bytes:
        args = [(ARG, a) for a in argv]
        return b"".join(record(t, v) for t, v in [*args, *recs])

    def start(
        self, argv: Iterable[bytes], *recs: tuple[int, bytes], eof: bool = True, piece: int = 65536
    ) -> int:
        ident = self.ids()
        spec = self.describe(argv, *recs)
        for at in range(0, len(spec), piece):
            self.pending += frame(SPEC, ident, spec[at : at + piece])
        self.pending += frame(EXEC, ident)
        if eof:
            self.pending += frame(EOF, ident)
        self.step(0)
        return ident

    def run(self, argv: Iterable[bytes], *recs: tuple[int, bytes], timeout: float = 60.0) -> Job:
        job = self.jobs[self.start(argv, *recs)]
        self.until(lambda: job.over, timeout)
        return job

    def feed(self, ident: int, data: bytes, timeout: float = 60.0, *, eof: bool = True) -> None:
        """Send stdin as the credit allows."""
        job, view = self.jobs[ident], memoryview(data)
        while view:
            self.until(lambda: job.credit > 0 and len(self.pending) < 262144, timeout)
            n = min(65536, job.credit, len(view))
            self.pending += frame(DATA, ident, bytes(view[:n]))
            job.credit -= n
            view = view[n:]
        if eof:
            self.pending += frame(EOF, ident)
        self.until(lambda: not self.pending, timeout)

    # -- receiving

    def until(self, done: Callable[[], bool], timeout: float = 60.0) -> None:
        end = time.monotonic() + timeout
        while not done():
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("the agent did not answer in time")
            if self.closed:
                raise ConnectionError("the agent is gone")
            self.step(left)

    def settle(self, seconds: float) -> None:
        """Listen for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.closed:
            self.step(left)

    def step(self, timeout: float) -> None:
        write = [self.sock] if self.pending else []
        readable, writable, _ = select.select([self.sock], write, [], timeout)
        if writable:
            self.flush()
        if readable:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self.closed = True
            self.buffer += data
            self.parse()
            self.flush()

    def flush(self) -> None:
        try:
            if self.pending:
                del self.pending[: self.sock.send(self.pending)]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def parse(self) -> None:
        if self.welcome is None and self.nonce is not None:
            at = self.buffer.find(self.nonce)
            if at < 12:
                return
            if self.buffer[at - 12] != WELCOME:
                return
            del self.buffer[: at - 12]
        at = 0
        while len(self.buffer) - at >= 13:
            kind, channel, zero, ident, size = struct.unpack_from("<BBHII", self.buffer, at)
            assert zero == 0 and size <= 65536, f"broken frame, type {kind}"
            if len(self.buffer) - at < 13 + size:
                break
            payload = bytes(self.buffer[at + 12 : at + 12 + size])
            assert self.buffer[at + 12 + size] == 0x5A, f"wrong end mark, type {kind}"
            at += 13 + size
            self.frames.append((kind, channel, ident, size))
            self.take(kind, channel, ident, payload)
        del self.buffer[:at]

    def take(self, kind: int, channel: int, ident: int, payload: bytes) -> None:
        if kind == WELCOME:
            assert payload[16:20] == b"\x03\0\0\0"
            self.welcome = records(payload[20:])
        elif kind == REPLY:
            self.replies[ident] = (struct.unpack_from("<I", payload)[0], records(payload[4:]))
        elif kind == PONG:
            self.pongs.append(struct.unpack("<Q", payload)[0])
        elif kind == LOG:
            self.logs.append(payload.decode())
        else:
            self.take_job(self.jobs[ident], kind, channel, ident, payload)
            if kind in (EXIT, FAILED) and self.forget:
                self.pending += frame(FORGET, ident)

    def take_job(self, job: Job, kind: int, channel: int, ident: int, payload: bytes) -> None:
        assert not job.over, "something after EXIT or FAILED"
        if kind == STARTED:
            job.started, *job.taken = struct.unpack("<I2Q", payload)
        elif kind == FAILED:
            number, stage, zero = struct.unpack_from("<IHH", payload)
            assert zero == 0
            job.failed = (number, stage, payload[8:].decode())
        elif kind == DATA:
            assert payload and channel not in job.eof
            job.out[channel] += payload
            if self.credit:
                self.pending += frame(CREDIT, ident, struct.pack("<I", len(payload)), channel)
        elif kind == EOF:
            assert channel not in job.eof
            job.eof.add(channel)
        elif kind == CREDIT:
            job.credit += struct.unpack("<I", payload)[0]
            assert job.credit <= WINDOW
        elif kind == EXIT:
            assert job.eof == {1, 2} and len(payload) == 72
            what, zero, *rest = struct.unpack("<HHI8Q", payload)
            assert zero == 0
            job.exit = Exit(what, *rest)
        elif kind == OPEN:
            job.name = payload
            if self.on_open:
                self.on_open(ident, payload)
        elif kind == RESET:
            job.reset = (struct.unpack_from("<I", payload)[0], payload[4:].decode())
        else:
            raise AssertionError(f"unknown frame type {kind}")

    def welcomed(self, tag: int) -> list[bytes]:
        assert self.welcome is not None
        return [v for t, v in self.welcome if t == tag]
