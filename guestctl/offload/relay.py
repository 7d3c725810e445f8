"""A compilation in three: preprocessed here, compiled to assembly elsewhere, assembled here. Pure.

What a compile host is asked for is the work of cc1 alone: headers are read, and the object is made,
by the toolchain in the view. So it needs nothing but the same cc1, and the name of its package in
`.ident` is the only trace that it leaves, which is made ours again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from guestctl.offload.words import shows_columns

__all__ = ["Relay", "ident_of", "may_leave", "renamed", "split_call"]

_SOURCES = {
    b"c": "c", b"i": "c",
    b"cc": "c++", b"cp": "c++", b"cxx": "c++", b"cpp": "c++", b"c++": "c++", b"C": "c++",
    b"ii": "c++",
}  # fmt: skip
_SUFFIX = {"c": b".i", "c++": b".ii"}
# For the preprocessor alone.
_VALUED = (
    b"-isystem", b"-iquote", b"-idirafter", b"-include", b"-imacros", b"-MF", b"-MT", b"-MQ",
    b"-I", b"-D", b"-U",
)  # fmt: skip
_ALONE = frozenset((b"-MD", b"-MMD", b"-MP", b"-nostdinc", b"-nostdinc++", b"-undef"))
_DEPENDENCIES = frozenset((b"-MD", b"-MMD"))
# For the compiler proper. Of -f, what writes other files, or tells of the source's text, stays.
_KEPT = re.compile(
    rb"-O\w*|-W(?![pal],)[\w+=-]*|-w|-m[\w+.,=-]*|-std=[\w+:]+|-ansi|-pedantic|-pedantic-errors"
    rb"|-pipe|-pthread|-g0|--param=[\w=-]+"
    rb"|-f(?!profile|branch-prob|auto-profile|test-coverage|dump|sanitize|stack-usage|callgraph"
    rb"|opt-info|save-opt|record|compare-debug|syntax-only|preprocessed|directives|working-dir"
    rb"|pch|modules?|lto|plugin|analyzer|instrument-functions-exclude-file)[\w+=.-]*"
)
_FOR_THE_ASSEMBLER = b"-Wa,"
# A function that gives the column where it is called.
_TELLS_COLUMNS = b"__builtin_source_location"
_IDENT = re.compile(rb'^\t\.ident\t"(GCC: \([^"\n]*\) [^"\n]*)"$', re.MULTILINE)


@dataclass(frozen=True)
class Relay:
    """The parts of a call.

    `language` is c or c++. `preprocess` are the words that give the text on standard output, None
    where the source is that already. `options` are for the compiler proper, `assembling` those
    of them and others that the assembler gets too; `output` is the object's name.
    """

    language: str
    source: bytes
    preprocess: tuple[bytes, ...] | None
    options: tuple[bytes, ...]
    assembling: tuple[bytes, ...]
    output: bytes

    def remote(self, compiler: bytes) -> tuple[bytes, ...]:
        """The call of a compile host's compiler. Names there are its own affair."""
        suffix = _SUFFIX[self.language]
        return (compiler, *self.options, b"-S", b"-o", b"relayed.s", b"relayed" + suffix)

    def assemble(self, name: bytes, text: bytes) -> tuple[bytes, ...]:
        """The call that makes the object, as `name`, of assembly in the file `text`."""
        return (name, *self.assembling, b"-c", text, b"-o", self.output)


def split_call(role: str, argv: Sequence[bytes]) -> Relay | None:
    """Takes a call of gcc or g++ apart; None for one that is not to be relayed.

    That is all but the compilation of one source, without debug information, whose options are all
    known to mean the same to its parts.
    """
    if role not in ("gcc", "g++") or b"-c" not in argv or shows_columns(argv):
        return None
    found = _Words(argv[1:])
    if not found.known or len(found.sources) != 1 or found.compile_only != 1:
        return None
    (source,) = found.sources
    stem, _dot, suffix = os.path.basename(source).rpartition(b".")
    language = _SOURCES.get(suffix) if stem else None
    if language is None or len(found.outputs) > 1:
        return None
    if role == "g++":
        language = "c++"
    output = found.outputs[0] if found.outputs else stem + b".o"
    ready = suffix in (b"i", b"ii")
    if found.depends and (ready or not found.depends_on_file):
        return None
    before = None
    if not ready:
        target = (b"-MQ", output) if found.depends and found.outputs and not found.target else ()
        before = (argv[0], *found.all, *target, b"-E", b"-fpch-preprocess", source)
    options = tuple(found.kept)
    return Relay(language, source, before, options, (*options, *found.assembler), output)


class _Words:
    """The words of a call, sorted by whom they are for."""

    def __init__(self, words: Sequence[bytes]) -> None:
        self.sources: list[bytes] = []
        self.outputs: list[bytes] = []
        self.all: list[bytes] = []  # but for -c, -o and the source
        self.kept: list[bytes] = []
        self.assembler: list[bytes] = []
        self.compile_only = 0
        self.known = True
        waiting = iter(words)
        for word in waiting:
            self._take(word, waiting.__next__)
        self.depends = bool(_DEPENDENCIES & set(self.all))
        self.depends_on_file = any(word.startswith(b"-MF") for word in self.all)
        self.target = any(word.startswith((b"-MT", b"-MQ")) for word in self.all)

    def _take(self, word: bytes, following: object) -> None:
        try:
            self._sort(word, following)
        except StopIteration:
            self.known = False

    def _sort(self, word: bytes, following: object) -> None:
        assert callable(following)
        if word == b"-c":
            self.compile_only += 1
        elif word == b"-o":
            self.outputs.append(following())
        elif not word.startswith(b"-"):
            self.sources.append(word)
            self.known &= not word.startswith(b"@")
        elif word in _ALONE:
            self.all.append(word)
        elif word in _VALUED:
            self.all += [word, following()]
        elif word.startswith(_VALUED):
            self.all.append(word)
        elif word == b"--param":
            pair = [word, following()]
            self.all += pair
            self.kept += pair
        elif word.startswith(_FOR_THE_ASSEMBLER):
            self.assembler.append(word)
        elif _KEPT.fullmatch(word):
            self.all.append(word)
            self.kept.append(word)
        else:
            self.known = False


def may_leave(text: bytes) -> bool:
    """Whether preprocessed text compiles to the same elsewhere: it has lost its columns."""
    return _TELLS_COLUMNS not in text and b"#pragma GCC pch_preprocess" not in text


def renamed(assembly: bytes, own: bytes, theirs: bytes) -> bytes | None:
    """A compile host's assembly with our compiler's name in it; None for what cannot be ours.

    `own` and `theirs` are the names in `.ident`, as one probe has shown them.
    """
    names = _IDENT.findall(assembly)
    if names != [theirs]:
        return None
    return _IDENT.sub(lambda _match: b'\t.ident\t"%s"' % own, assembly)


def ident_of(assembly: bytes) -> bytes:
    """The name of the compiler that made some assembly; nothing if it does not tell."""
    names = _IDENT.findall(assembly)
    return bytes(names[0]) if len(names) == 1 else b""
