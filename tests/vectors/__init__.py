"""The vectors of frames.txt, whose head explains their notation."""

from __future__ import annotations

from pathlib import Path

__all__ = ["GOOD", "LINES", "data_of"]

_TEXT = (Path(__file__).parent / "frames.txt").read_text()
LINES = [line.split() for line in _TEXT.splitlines() if line and line[0] != "#"]
GOOD = {words[1]: words for words in LINES if words[0] == "good"}


def data_of(text: str) -> bytes:
    """The bytes that a vector's notation stands for."""
    if text == "-":
        return b""
    made = b""
    for piece in text.split("+"):
        name, _, count = piece.partition(":")
        if piece.startswith("@"):
            whole = data_of(GOOD[name[1:]][-1])
            made += whole[: int(count)] if count else whole
        else:
            digits, _, times = piece.partition("*")
            made += bytes.fromhex(digits) * int(times or 1)
    return made
