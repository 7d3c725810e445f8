"""The host's state machine: what a good agent says, and everything that a bad one may not."""

from __future__ import annotations

import struct

import pytest

from guestctl import events, wire
from guestctl.errors import ProtocolError
from guestctl.session import Session
from guestctl.spec import Command, Usage
from guestctl.wire import Op, Tag, Type, encode

NONCE = bytes(range(16))
EXIT = struct.Struct("<HHI8Q")


def welcome(version: int = wire.VERSION, jobs: tuple[int, ...] = ()) -> bytes:
    records = [(Tag.AGENT, b"guest-init 1"), (Tag.MACHINE, b"armv5tejl")]
    records += [(Tag.JOB, struct.pack("<I", job)) for job in jobs]
    return encode(
        Type.WELCOME, payload=NONCE + struct.pack("<HH", version, 0) + wire.pack_records(records)
    )


def exited(job: int, kind: int = 0, value: int = 0) -> bytes:
    return encode(Type.EXIT, job, payload=EXIT.pack(kind, 0, value, 1_500_000, 2, 3, 4, 5, 6, 7, 8))


@pytest.fixture
def session() -> Session:
    made = Session(NONCE, orphan=5000)
    made.feed(welcome())
    return made


@pytest.fixture
def job(session: Session) -> int:
    made, _ = session.start(Command(argv=(b"true",)))
    session.feed(encode(Type.STARTED, made, payload=struct.pack("<I2Q", 77, 5, 0)))
    return made


def test_hello_begins_with_enough_filler() -> None:
    hello = Session(NONCE, orphan=5000).hello()
    assert hello.startswith(bytes(131_072))
    (frame,) = wire.Decoder().feed(hello)
    assert frame.payload == struct.pack("<HHI", wire.VERSION, 0, 5000) + NONCE


def test_an_orderly_session_begins_without_filler() -> None:
    session = Session(NONCE, orphan=5000)
    assert session.hello() == bytes(131_072) + session.hello(orderly=True)


def test_welcome_tells_the_facts() -> None:
    (event,) = Session(NONCE).feed(welcome(jobs=(3, 9)))
    assert event == events.Welcomed("guest-init 1", "", "armv5tejl", (3, 9))


def test_ids_of_orphans_are_not_given_again() -> None:
    session = Session(NONCE)
    session.feed(welcome(jobs=(3, 9)))
    assert session.start(Command(argv=(b"true",)))[0] == 10


def test_another_version_is_refused_with_a_hint() -> None:
    with pytest.raises(ProtocolError) as caught:
        Session(NONCE).feed(welcome(version=wire.VERSION + 1))
    assert "image build" in caught.value.hint


def test_a_whole_command(session: Session, job: int) -> None:
    data = encode(Type.DATA, job, 1, b"out") + encode(Type.DATA, job, 2, b"err")
    data += encode(Type.EOF, job, 1) + encode(Type.EOF, job, 2) + exited(job, 1, 9)
    assert session.feed(data) == [
        events.Output(job, 1, b"out"),
        events.Output(job, 2, b"err"),
        events.Ended(job, 1),
        events.Ended(job, 2),
        events.Exited(job, True, 9, Usage(1.5, 2e-6, 3e-6, 4, 5, 6, 7, 8)),
    ]
    assert session.send(job, b"late") == b""
    assert session.consumed(job, 1, 3) == b""


def test_output_is_credited_after_its_end_too(session: Session, job: int) -> None:
    session.feed(encode(Type.DATA, job, 1, b"out") + encode(Type.EOF, job, 1))
    (frame,) = wire.Decoder().feed(session.consumed(job, 1, 3))
    assert frame == wire.Frame(Type.CREDIT, job, 1, struct.pack("<I", 3))


def test_long_descriptions_are_cut_into_frames(session: Session) -> None:
    _, data = session.start(Command(argv=(b"x" * 200_000,)))
    frames = wire.Decoder().feed(data)
    assert [frame.type for frame in frames] == [Type.SPEC] * 4 + [Type.EXEC]


def test_stdin_needs_room(session: Session, job: int) -> None:
    assert session.room(job) == wire.CREDIT_WINDOW
    session.send(job, bytes(wire.CREDIT_WINDOW))
    assert session.room(job) == 0
    with pytest.raises(RuntimeError):
        session.send(job, b"x")
    session.feed(encode(Type.CREDIT, job, 0, struct.pack("<I", 100)))
    assert session.room(job) == 100
    assert session.send_eof(job)
    assert session.send_eof(job) == b""
    assert session.room(job) == 0


def test_a_service_stream_lives_until_both_ends_have_closed(session: Session) -> None:
    stream = 0x80000001
    assert session.feed(encode(Type.OPEN, stream, payload=b"distcc")) == [
        events.Opened(stream, b"distcc")
    ]
    session.feed(encode(Type.DATA, stream, 0, b"hi") + encode(Type.EOF, stream))
    assert session.room(stream)
    session.send_eof(stream)
    # What crossed the end is ignored; the id may be used again.
    assert session.feed(encode(Type.DATA, stream, 0, b"late")) == []
    assert session.feed(encode(Type.OPEN, stream, payload=b"x")) == [events.Opened(stream, b"x")]


def test_a_refused_stream_may_still_be_heard_of(session: Session) -> None:
    stream = 0x80000001
    session.feed(encode(Type.OPEN, stream, payload=b"distcc"))
    assert session.refuse(stream, 111, "no")
    assert session.feed(encode(Type.EOF, stream) + encode(Type.DATA, stream, 0, b"x")) == []


def test_replies_belong_to_requests(session: Session) -> None:
    request, _ = session.request(Op.SYNC)
    records = wire.pack_records([(Tag.TEXT, b"no")])
    reply = encode(Type.REPLY, request, payload=struct.pack("<I", 5) + records)
    assert session.feed(reply) == [events.Replied(request, 5, "no")]
    with pytest.raises(ProtocolError):
        session.feed(reply)


def bad(*frames: bytes) -> bytes:
    return b"".join(frames)


@pytest.mark.parametrize(
    "make",
    [
        lambda job: encode(Type.DATA, job + 1, 1, b"x"),  # of a job that is not there
        lambda job: encode(Type.STARTED, job, payload=bytes(20)),  # twice
        lambda job: encode(Type.FAILED, job, payload=bytes(8)),  # after STARTED
        exited,  # before its output has ended
        lambda job: encode(Type.DATA, job, 0, b"x"),  # on stdin
        lambda job: encode(Type.DATA, job, 3, b"x"),  # on no channel
        lambda job: encode(Type.EOF, job, 1) + encode(Type.DATA, job, 1, b"x"),  # after its end
        lambda job: encode(Type.EOF, job, 1) + encode(Type.EOF, job, 1),
        lambda job: encode(Type.DATA, job, 1, bytes(65536)) * 5,  # beyond its credit
        lambda job: encode(Type.CREDIT, job, 0, struct.pack("<I", 1)),  # never used
        lambda job: encode(Type.REPLY, 99, payload=bytes(4)),
        lambda job: encode(Type.OPEN, 5, payload=b"x"),  # an id of the host's
        lambda job: encode(Type.HELLO),  # not the guest's to send
        lambda job: encode(Type.PONG, payload=b"x"),  # too short
        lambda job: encode(Type.EOF, job, 1) + encode(Type.EOF, job, 2) + exited(job, 7),
        lambda job: welcome(),  # twice
    ],
)
def test_what_an_agent_may_not_say(session: Session, job: int, make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ProtocolError):
        session.feed(make(job))


def test_nothing_comes_before_the_welcome() -> None:
    session = Session(NONCE)
    with pytest.raises(ProtocolError):
        session.feed(encode(Type.WELCOME, payload=NONCE))


def test_ids_go_on_from_the_first_when_an_agent_claims_the_last() -> None:
    session = Session(NONCE)
    session.feed(welcome(jobs=(1, 0x7FFFFFFF)))
    assert session.start(Command(argv=(b"true",)))[0] == 2


@pytest.mark.parametrize("job", [0, 0x80000000])
def test_an_orphan_has_an_id_that_a_host_could_have_given(job: int) -> None:
    with pytest.raises(ProtocolError):
        Session(NONCE).feed(welcome(jobs=(job,)))


def test_a_guests_words_are_one_line_that_no_terminal_obeys(session: Session) -> None:
    (event,) = session.feed(encode(Type.LOG, payload=b"\x1b[2J\nfine \xff\xc3\xbc" + bytes(5000)))
    assert isinstance(event, events.Logged)
    assert event.text.startswith("\\x1b[2J\\nfine \\xff\u00fc")
    assert "\n" not in event.text and len(event.text) <= 4 * 1024
