"""What a call's words say, as far as the way it takes depends on it. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence

__all__ = ["hidden_path", "is_compilation", "shows_columns", "step_of"]

# A path at the beginning of a word, after an option's letters, or after = , : @ within one.
_PATHS = re.compile(rb"(?:^(?:-[A-Za-z]+)?|[=,:@])(/[^,:]*)")
# What configure scripts and cmake try out: their names for it, and cmake's folders.
_TRIES = re.compile(
    rb"(?:^|/)(?:conftest|ztest\d)|(?:^|/)CMakeFiles/(?:CMakeTmp|CMakeScratch|[\d.]+/CompilerId)"
    rb"|cmTC_"
)
_COMPILERS = re.compile(rb"(?:.*-)?(?:cc|gcc|c\+\+|g\+\+)(?:-[0-9.]+)?")


def hidden_path(cwd: bytes, argv: Sequence[bytes], hidden: Iterable[bytes]) -> bytes | None:
    """The first path of a call that lies where the host cannot see; /dev/null can be seen."""
    folders = [folder.rstrip(b"/") for folder in hidden]

    def is_hidden(path: bytes) -> bool:
        path = posixpath.normpath(b"/" + path.lstrip(b"/"))
        if path == b"/dev/null":
            return False
        return any(path == folder or path.startswith(folder + b"/") for folder in folders)

    if is_hidden(cwd):
        return cwd
    for word in argv[1:]:
        found = [match[1] for match in _PATHS.finditer(word)]
        if b"../" in word:
            # It may lead out of the folder; what comes before it does not matter then.
            at = word.index(b"../")
            found.append(posixpath.join(cwd, word[at:]))
        for path in found:
            if is_hidden(path):
                return path
    return None


def is_compilation(name: bytes, argv: Sequence[bytes]) -> bool:
    """Whether distcc would pass a call on: a compiler with -c and a source."""
    return bool(_COMPILERS.fullmatch(name)) and b"-c" in argv[1:] and b"-" not in argv[1:]


def shows_columns(argv: Sequence[bytes]) -> bool:
    """Whether an object tells in which columns its source has what: preprocessing moves them.
    Debug information does, and what -fsanitize=undefined says of a fault."""
    return any(
        (word.startswith(b"-g") and word != b"-g0") or word.startswith(b"-fsanitize")
        for word in argv[1:]
    )


def step_of(name: bytes, argv: Sequence[bytes], cwd: bytes = b"/") -> str:
    """The kind of work, for the ledger; what configure tries is one of its own."""
    words = set(argv[1:])
    if any(_TRIES.search(word) for word in (cwd, *words)):
        return "configure"
    if _COMPILERS.fullmatch(name):
        for option, step in _STEPS.items():
            if option in words:
                return step
        asks = any(word.startswith((b"-dump", b"-print-")) for word in words)
        return "ask" if asks or words <= {b"-v", b"-V", b"--version", b"-qversion"} else "link"
    tool = name.rpartition(b"-")[2]
    return _TOOLS.get(tool, "other")


_STEPS = {b"-E": "preprocess", b"-M": "preprocess", b"-MM": "preprocess", b"-c": "compile",
          b"-S": "compile"}  # fmt: skip
_TOOLS = {b"cpp": "preprocess", b"as": "assemble", b"ld": "link", b"ar": "archive",
          b"ranlib": "archive"}  # fmt: skip
