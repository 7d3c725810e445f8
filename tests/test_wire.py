"""Frames and records: whole, byte by byte, cut, broken; and the vectors shared with the guest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestctl import wire
from guestctl.errors import ProtocolError, UsageError
from guestctl.spec import Command
from guestctl.wire import Decoder, Frame, Tag, Type, encode
from tests.vectors import GOOD, LINES, data_of

FRAMES = st.builds(
    Frame,
    type=st.sampled_from(sorted(Type)),
    id=st.integers(0, 2**32 - 1),
    channel=st.integers(0, 255),
    payload=st.binary(max_size=300),
)


def encoded(frame: Frame) -> bytes:
    return encode(frame.type, frame.id, frame.channel, frame.payload)


@given(st.lists(FRAMES, max_size=8), st.integers(1, 50))
def test_what_is_encoded_is_decoded_however_it_is_cut(frames: list[Frame], step: int) -> None:
    data = b"\0\0".join(encoded(frame) for frame in frames)
    decoder = Decoder()
    got = []
    for at in range(0, len(data), step):
        got += decoder.feed(data[at : at + step])
    assert got == frames


def test_a_frame_of_the_largest_payload() -> None:
    payload = bytes(range(256)) * 256
    assert Decoder().feed(encode(Type.DATA, 1, 1, payload)) == [Frame(Type.DATA, 1, 1, payload)]
    with pytest.raises(ValueError, match="65536"):
        encode(Type.DATA, 1, 1, payload + b"x")


@pytest.mark.parametrize(
    "data",
    [
        b"\x5b" + encode(Type.EOF, 1)[1:],  # unknown type
        encode(Type.EOF, 1)[:2] + b"\1\0" + encode(Type.EOF, 1)[4:],  # reserved
        encode(Type.EOF, 1)[:8] + b"\1\0\1\0" + b"x" * 70000,  # too long
        encode(Type.EOF, 1)[:-1] + b"\x5b",  # end mark
    ],
)
def test_broken_frames_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(data)


@given(st.binary(max_size=400), st.integers(1, 64))
def test_a_new_session_skips_whatever_was_in_the_pipe(garbage: bytes, step: int) -> None:
    nonce = b"0123456789abcdef"
    welcome = encode(Type.WELCOME, payload=nonce + b"\1\0\0\0")
    data = garbage + welcome + encode(Type.PONG, payload=bytes(8))
    decoder = Decoder(nonce)
    got = []
    for at in range(0, len(data), step):
        got += decoder.feed(data[at : at + step])
    assert [frame.type for frame in got] == [Type.WELCOME, Type.PONG]


def test_hunting_keeps_little() -> None:
    decoder = Decoder(b"0123456789abcdef")
    for _ in range(100):
        assert decoder.feed(b"x" * 65536) == []
    assert len(decoder._buffer) < 65536


@given(st.lists(st.tuples(st.sampled_from(sorted(Tag)), st.binary(max_size=99)), max_size=9))
def test_records_come_back(records: list[tuple[int, bytes]]) -> None:
    assert list(wire.unpack_records(wire.pack_records(records))) == records


@pytest.mark.parametrize("cut", [1, 4, 5, 7])
def test_cut_records_are_refused(cut: int) -> None:
    with pytest.raises(ProtocolError):
        list(wire.unpack_records(wire.pack_records([(1, b"abcdef")])[:-cut]))


def test_a_command_over_the_limit_names_it() -> None:
    with pytest.raises(UsageError) as caught:
        wire.command_records(Command(argv=(b"true",), env=(b"A=" + b"x" * 10_000_000,)))
    assert "2,097,152" in caught.value.hint


@pytest.mark.parametrize("command", [Command(argv=()), Command(argv=(b"a\0b",))])
def test_commands_that_no_exec_takes(command: Command) -> None:
    with pytest.raises(UsageError):
        wire.command_records(command)


# --- the vectors that both sides are bound by -----------------------------------------------


def frame_of(words: list[str]) -> Frame:
    fields = dict(word.split("=", 1) for word in words[3:7])
    return Frame(
        int(fields["type"], 16),
        int(fields["id"], 16),
        int(fields["channel"]),
        data_of(fields["payload"]),
    )


@pytest.mark.parametrize("name", GOOD)
def test_good_vectors(name: str) -> None:
    words = GOOD[name]
    frame, data = frame_of(words), data_of(words[-1])
    assert encoded(frame) == data
    for step in (1, len(data)):
        decoder = Decoder()
        pieces = (data[at : at + step] for at in range(0, len(data), step))
        assert [got for piece in pieces for got in decoder.feed(piece)] == [frame]


@pytest.mark.parametrize("words", [w for w in LINES if w[0] == "broken"], ids=lambda w: w[1])
def test_broken_vectors(words: list[str]) -> None:
    data = data_of(words[3])
    for step in (1, len(data)):
        decoder = Decoder()
        with pytest.raises(ProtocolError):
            for at in range(0, len(data), step):
                decoder.feed(data[at : at + step])


@pytest.mark.parametrize("words", [w for w in LINES if w[0] == "partial"], ids=lambda w: w[1])
def test_partial_vectors(words: list[str]) -> None:
    assert Decoder().feed(data_of(words[3])) == []
