"""Bytes from a hostile agent: the host's decoder and its session, by atheris or mutated.

    python -m tests.fuzz.fuzz_wire [--seconds N] [--seed N] [--corpus FOLDER]

Whatever comes in, what goes out is events or a ProtocolError of one line; how the bytes are cut
makes no difference; and what is kept is bounded. `--corpus` writes the vectors there, one file
each, for fuzzers of the guest's side.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from guestctl.errors import ProtocolError
from guestctl.events import Event, Opened, Output
from guestctl.session import SERVICE_BIT, Session
from guestctl.spec import Command
from guestctl.wire import CREDIT_WINDOW, PAYLOAD_MAX, VERSION, Decoder, Frame, Op, Type, encode
from tests.vectors import LINES, data_of

__all__ = ["run", "seeds", "try_bytes"]

CORPUS = Path(__file__).parent / "corpus-wire"
_NONCE = bytes(range(0xA0, 0xB0))
_WELCOME = encode(Type.WELCOME, payload=_NONCE + bytes((VERSION, 0, 0, 0)))


def seeds() -> list[bytes]:
    """A step and then bytes: the shorter vectors, a whole job, and what was ever found."""
    found = {data_of(words[-1]) for words in LINES if words[0] != "cut"}
    end = b"".join(encode(Type.EOF, 1, channel) for channel in (1, 2))
    job = encode(Type.STARTED, 1, payload=b"\7\0\0\0" + bytes(16)) + encode(Type.DATA, 1, 1, b"out")
    stream = encode(Type.OPEN, SERVICE_BIT, payload=b"echo") + encode(
        Type.DATA, SERVICE_BIT, 0, b"x"
    )
    found |= {job + end + encode(Type.EXIT, 1, payload=bytes(72)), stream + job, job + stream}
    first = [b"\7" + data for data in sorted(found) if len(data) < 8192]
    return first + [path.read_bytes() for path in sorted(CORPUS.glob("*"))]


def _pieces(data: bytes, step: int) -> list[bytes]:
    return [data[at : at + step] for at in range(0, len(data), step)]


def _frames(data: bytes, step: int, nonce: bytes) -> tuple[list[Frame], str]:
    """What a decoder finds in pieces of `step` bytes, and how it ended."""
    decoder = Decoder(nonce)
    found = []
    try:
        for piece in _pieces(data, step):
            # Piece by piece, so that what comes before a broken frame counts.
            found += decoder.feed(piece)
            assert len(decoder._buffer) <= PAYLOAD_MAX + 64 + step, "the decoder keeps too much"
    except ProtocolError as error:
        assert "\n" not in str(error)
        return found, "broken"
    return found, ""


def _session() -> Session:
    """A session with a job, a request, an orphan's claim and an open service stream."""
    session = Session(_NONCE)
    session.hello()
    session.feed(_WELCOME)
    session.start(Command(argv=(b"true",)))
    session.request(Op.SYNC)
    session.feed(encode(Type.OPEN, SERVICE_BIT + 1, payload=b"echo"))
    session.accept(SERVICE_BIT + 1)
    return session


def _live(data: bytes, step: int) -> None:
    """A session takes the bytes: only what its credit allows is ever handed on."""
    session = _session()
    got: dict[tuple[int, int], int] = {}
    try:
        for piece in _pieces(data, step):
            for event in session.feed(piece):
                assert isinstance(event, Event)
                if isinstance(event, Output):
                    key = (event.stream, event.channel)
                    got[key] = got.get(key, 0) + len(event.data)
                    assert event.data and got[key] <= CREDIT_WINDOW
                elif isinstance(event, Opened):
                    assert event.stream >= SERVICE_BIT and len(event.service) <= 64
            assert len(session._streams) <= 260
    except ProtocolError as error:
        assert "\n" not in str(error)


def try_bytes(data: bytes) -> None:
    """One input: its first byte says how the rest is cut."""
    if not data:
        return
    step, data = data[0] + 1, data[1:]
    whole, how = _frames(data, len(data) + 1, b"")
    cut, also = _frames(data, step, b"")
    assert how == also
    # All at once nothing is told of what stands before a broken frame.
    assert cut == whole or how
    assert _frames(data, step, _NONCE)[1] == _frames(data, len(data) + 1, _NONCE)[1]
    _live(data, step)


def _mutated(data: bytes, pool: list[bytes], chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(out)) if out else 0
        match chance.randrange(5):
            case 0 | 1 if out:
                out[at] = chance.randrange(256)
            case 2:
                del out[at : at + chance.randrange(1, 20)]
            case 3:
                out[at:at] = chance.choice(pool)[1:]
            case _:
                out += chance.choice(pool)[1:]
    return bytes(out[:20000])


def run(seconds: float, seed: int) -> int:
    """Mutates the seeds for so long; returns how many inputs were tried."""
    chance = random.Random(seed)
    pool = seeds()
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        data = _mutated(chance.choice(pool), pool, chance)
        try:
            try_bytes(data)
        except Exception:
            CORPUS.mkdir(exist_ok=True)
            CORPUS.joinpath(f"found-{seed}-{count}").write_bytes(data)
            raise
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path)
    given = parser.parse_args()
    if given.corpus:
        given.corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds()):
            (given.corpus / f"seed{number:03}").write_bytes(data)
        return
    import atheris

    CORPUS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(seeds()):
            Path(folder, str(number)).write_bytes(data)
        atheris.instrument_func(Decoder.feed)
        atheris.instrument_func(Session._event)
        limits = [f"-max_total_time={int(given.seconds)}", "-max_len=20000", "-timeout=20"]
        atheris.Setup(
            [sys.argv[0], *limits, f"-artifact_prefix={CORPUS}/found-", folder], try_bytes
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
