"""Response files: words such as @FILE stand for the words that a file holds. Pure.

As expandargv of libiberty does it, which all programs of gcc and binutils call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from guestctl.errors import UsageError

__all__ = ["Response", "expand", "split"]

_MOST_WORDS = 100_000
_MOST_DEPTH = 16

# Returns what a response file holds, by its name in the call; None where there is none.
Response = Callable[[bytes], bytes | None]


def expand(words: Sequence[bytes], response: Response, depth: int = 0) -> Iterator[bytes]:
    """The words of a call, those of response files in their place (expandargv of libiberty)."""
    for count, word in enumerate(words):
        if count > _MOST_WORDS or depth > _MOST_DEPTH:
            raise UsageError("a response file too large")
        text = response(word[1:]) if word.startswith(b"@") and len(word) > 1 else None
        if text is None:
            yield word
        else:
            yield from expand(split(text), response, depth + 1)


def split(text: bytes) -> list[bytes]:
    """The words of a response file: spaces part them, quotes and backslashes keep them whole."""
    words: list[bytes] = []
    word: bytearray | None = None
    quote = b""
    at = 0
    while at < len(text):
        letter = text[at : at + 1]
        at += 1
        if letter == b"\\" and at < len(text):
            word = (word or bytearray()) + text[at : at + 1]
            at += 1
        elif quote:
            if letter == quote:
                quote = b""
            else:
                word = (word or bytearray()) + letter
        elif letter in (b"'", b'"'):
            quote = letter
            word = word if word is not None else bytearray()
        elif letter.isspace():
            if word is not None:
                words.append(bytes(word))
            word = None
        else:
            word = (word or bytearray()) + letter
    if word is not None:
        words.append(bytes(word))
    return words
