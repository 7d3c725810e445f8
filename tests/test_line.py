"""The serial line's layer: packets, vectors, and streams through noise."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestctl.line import DATA, PAYLOAD, SYNC, ZEROS, Line, Packet, decode, encode

VECTORS = Path(__file__).parent / "vectors" / "line.txt"
LINES = [line.split() for line in VECTORS.read_text().splitlines() if line and line[0] != "#"]


@given(
    st.sampled_from([SYNC, DATA]), st.integers(1, 2**32 - 1), st.integers(0, 65535),
    st.binary(max_size=PAYLOAD),
)  # fmt: skip
def test_packets(kind: int, sender: int, number: int, payload: bytes) -> None:
    packet = Packet(kind, sender, 7, number, 3, 5, b"" if kind == SYNC else payload)
    data = encode(packet)
    assert data.endswith(b"\0") and b"\0" not in data[:-1]
    assert decode(data[:-1]) == packet


@pytest.mark.parametrize("words", [w for w in LINES if w[0] == "packet"], ids=lambda w: w[1])
def test_vectors(words: list[str]) -> None:
    fields = dict(word.split("=") for word in words[2:-1])
    payload = bytes.fromhex(fields.pop("payload").replace("-", ""))
    packet = Packet(**{name: int(value, 16) for name, value in fields.items()}, payload=payload)
    data = bytes.fromhex(words[-1])
    assert encode(packet) == data
    assert decode(data[:-1]) == packet


@pytest.mark.parametrize("words", [w for w in LINES if w[0] == "noise"], ids=lambda w: w[1])
def test_noise_is_no_packet(words: list[str]) -> None:
    assert decode(bytes.fromhex(words[-1])) is None


class Noise:
    """Loses, changes and repeats what passes."""

    def __init__(self, seed: int, loss: float, change: float, repeat: float) -> None:
        self.chance = random.Random(seed)
        self.rates = (loss, change, repeat)

    def __call__(self, data: bytes) -> bytes:
        loss, change, repeat = self.rates
        out = bytearray()
        for byte in data:
            if self.chance.random() < loss:
                continue
            made = byte ^ 1 << self.chance.randrange(8) if self.chance.random() < change else byte
            out.append(made)
        if self.chance.random() < repeat:
            out += out[-self.chance.randrange(1, 700) :]
        return bytes(out)


def joined(left: Line, right: Line, noise: Noise, now: float, until: object) -> float:
    """Time passes in steps of 5 ms until `until` says so."""
    for _ in range(100_000):
        if until():  # type: ignore[operator]
            return now
        right.feed(noise(left.output(now)), now)
        now += 0.005
        left.feed(noise(right.output(now)), now)
    raise AssertionError("no end")


@pytest.mark.parametrize(
    "rates", [(0, 0, 0), (0.001, 0, 0), (0, 0.001, 0), (0, 0, 0.3), (0.0005, 0.0005, 0.1)]
)
def test_a_stream_comes_through_as_it_was_sent(rates: tuple[float, float, float]) -> None:
    chance = random.Random(3)
    there = chance.randbytes(40_000) + bytes(131_072) + chance.randbytes(20_000) + bytes(63)
    back = chance.randbytes(30_000)
    left, right = Line(11), Line(22)
    got: list[bytearray] = [bytearray(), bytearray()]
    rest = [there, back]

    def step() -> bool:
        for line, number in ((left, 0), (right, 1)):
            room = min(line.room(), 5000) if line.connected else 0
            line.send(rest[number][:room])
            rest[number] = rest[number][room:]
        got[0] += right.take(100_000)
        got[1] += left.take(100_000)
        return len(got[0]) >= len(there) and len(got[1]) >= len(back)

    joined(left, right, Noise(1, *rates), 0.0, step)
    assert (bytes(got[0]), bytes(got[1])) == (there, back)


def test_a_new_end_is_met_and_an_old_one_forgotten() -> None:
    left, right = Line(1), Line(2)
    quiet = Noise(1, 0, 0, 0)
    now = joined(left, right, quiet, 0.0, lambda: left.connected and right.connected)
    right.send(b"what nobody took" * 1000)
    right.output(now)
    again = Line(3)
    now = joined(again, right, quiet, now, lambda: again.connected and right._peer == 3)
    right.send(b"new")
    got = bytearray()

    def heard() -> bool:
        got.extend(again.take(100))
        return bytes(got) == b"new"

    joined(again, right, quiet, now, heard)


def test_what_the_caller_does_not_take_waits_at_the_sender() -> None:
    left, right = Line(1), Line(2)
    now = joined(left, right, Noise(1, 0, 0, 0), 0.0, lambda: left.connected and right.connected)
    sent = 0
    for _ in range(2000):
        room = left.room()
        left.send(b"x" * room)
        sent += room
        right.feed(left.output(now), now)
        left.feed(right.output(now), now)
        now += 0.05
    assert len(right._inbox) <= (1 << 16) + PAYLOAD
    assert sent <= 3 << 16


def test_a_run_of_zeros_takes_few_bytes() -> None:
    left, right = Line(1), Line(2)
    now = joined(left, right, Noise(1, 0, 0, 0), 0.0, lambda: left.connected and right.connected)
    left.send(bytes(65_000))
    data = left.output(now)
    assert len(data) < 60
    right.feed(data, now)
    assert right.take(100_000) == bytes(65_000)


@given(st.binary(max_size=2000))
def test_noise_alone_says_nothing(data: bytes) -> None:
    line = Line(1)
    line.feed(data, 0.0)
    assert not line.connected and line.take(1) == b""


def test_kinds_are_those_of_the_vectors() -> None:
    assert {int(dict(word.split("=") for word in w[2:-1])["kind"], 16) for w in LINES
            if w[0] == "packet"} == {SYNC, DATA, ZEROS}  # fmt: skip
