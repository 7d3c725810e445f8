"""From the guest's call of a compiler or a tool to the host's, or why there is none. Pure.

In a view the toolchain's programs stand where the guest has its own, so the host runs the same
words under the same names. What is left is to refuse what would not come out the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from guestctl.errors import UsageError
from guestctl.toolchain.facts import Pairing
from guestctl.toolchain.options import ASSEMBLER, COMPILER, DRIVERS, LINKER, TOOLS, Tool
from guestctl.toolchain.response import Response, expand

__all__ = ["ENVIRONMENT", "Command", "Refusal", "doubt", "translate"]

# What is passed on of the guest's environment: the stub need send no more than ENVIRONMENT.
_PASSED = (
    b"PATH", b"PWD", b"TMPDIR", b"TMP", b"TEMP", b"TZ", b"LANG", b"LANGUAGE", b"LC_ALL",
    b"LC_CTYPE", b"LC_MESSAGES", b"LC_COLLATE", b"LC_TIME", b"COLUMNS", b"POSIXLY_CORRECT",
    b"SOURCE_DATE_EPOCH", b"CPATH", b"C_INCLUDE_PATH", b"CPLUS_INCLUDE_PATH", b"LIBRARY_PATH",
    b"GCC_COLORS", b"GCC_URLS", b"TERM_URLS",
    b"LD_RUN_PATH", b"LDEMULATION", b"GNUTARGET", b"COLLECT_NO_DEMANGLE",
)  # fmt: skip
# With these set, other programs run, other folders are read, or a file gets lines appended, which
# several compilers may do at once.
_REFUSED = (
    b"COMPILER_PATH", b"GCC_EXEC_PREFIX", b"GCC_COMPARE_DEBUG", b"COLLECT_GCC",
    b"COLLECT_GCC_OPTIONS", b"COLLECT_LTO_WRAPPER", b"GCC_ROOT", b"G++_ROOT", b"BINUTILS_ROOT",
    b"LD_PRELOAD", b"LD_AUDIT", b"DEPENDENCIES_OUTPUT", b"SUNPRO_DEPENDENCIES",
    b"OBJC_INCLUDE_PATH", b"LOCPATH", b"NLSPATH",
)  # fmt: skip
_LINKING = b"LD_LIBRARY_PATH"  # a native ld looks for libraries there, and so does its own loader
_LOCALES = (b"", b"C", b"POSIX", b"C.UTF-8", b"C.utf8")
ENVIRONMENT: tuple[bytes, ...] = (*_PASSED, *_REFUSED, _LINKING)

_OTHER_LANGUAGES = re.compile(
    r"\.(f|for|ftn|fpp|f90|f95|f03|f08|F|FOR|FTN|FPP|F90|F95|F03|F08|ads|adb|go|d|dd|di|m|mi|mm"
    r"|mii|M|mod|def|java|class|zip|jar|brig)$"
)
_HEADERS = re.compile(r"\.(h|H|hh|hp|hxx|hpp|HPP|h\+\+|tcc)$")
_LANGUAGES = {
    "none", "c", "c++", "cpp-output", "c++-cpp-output", "assembler", "assembler-with-cpp",
}  # fmt: skip
_SYSTEM = re.compile(r"(?:^(?:-[A-Za-z]+)?|[=,])/(?:dev/(?!null(?:$|,))|proc/|sys/)")
_ASKED = {"cc1", "cc1plus", "collect2", "as", "ld", "lto-wrapper"}  # by -print-prog-name
_NO_OUTPUT = {"-E", "-M", "-MM", "-fsyntax-only"}
# A precompiled header of the guest's is not for the host's compiler, which passes it over and says
# so when it is asked to. Options of warnings leave no trace in what is made.
_GUARD = (b"-Winvalid-pch", b"-Werror=invalid-pch")
_TELLS = {"--version", "--help", "-V", "--target-help"}  # and nothing else is done


@dataclass(frozen=True)
class Command:
    """What to run in the view. `environ` is whole; `binds` are those of the pairing.

    `makes_objects`: outputs must be checked to be of the target before the guest gets them.
    `reads_stdin`: the program reads its standard input.
    """

    program: bytes
    argv: tuple[bytes, ...]
    environ: Mapping[bytes, bytes]
    binds: tuple[tuple[bytes, bytes], ...]
    makes_objects: bool
    reads_stdin: bool


@dataclass(frozen=True)
class Refusal:
    """Why the call must run in the guest."""

    reason: str


class _Refused(Exception):
    pass


def translate(
    pairing: Pairing,
    program: bytes,
    argv: Sequence[bytes],
    environ: Mapping[bytes, bytes],
    response: Response = lambda name: None,
    bare: Callable[[bytes], bool] = lambda folder: False,
) -> Command | Refusal:
    """Returns what the host must run so that the outcome is that of the guest's own program.

    `program` is the path of what the guest would have executed: the next of its name in PATH after
    the stub. `argv` is as the stub got it; `environ` holds at least what ENVIRONMENT names of the
    caller's. `response` reads the files that words such as @FILE name; `bare` says of a folder,
    whose name ends in a slash, that no part of a compiler is in it.
    """
    if not argv:
        return Refusal("a call without a name")
    try:
        words = [_text(word) for word in expand(argv[1:], response)]
        kept = _environment(environ)
        if pairing.role in DRIVERS:
            driver = _Driver(pairing.role, words, bare)
            reads = driver.check(linking_library=_LINKING in environ)
            added = _GUARD if driver.compiles() else ()
        else:
            reads, added = _check_tool(pairing.role, words, environ), ()
    except (_Refused, UsageError) as error:
        return Refusal(str(error))
    return Command(
        program=pairing.program,
        # A path in argv[0] is the stub's own: the program's path stands for it.
        argv=(program if b"/" in argv[0] else argv[0], *argv[1:], *added),
        environ=kept,
        binds=pairing.binds,
        makes_objects=pairing.role != "nm",
        reads_stdin=reads,
    )


# What the host's tools say when it is not the guest's own tool's word, and why.
_DOUBTS = {
    b"internal compiler error": "the host's compiler broke down",
    # By a driver of parts that have met a limit of the view, or the kernel's; and by collect2.
    b" signal terminated program": "a limit of the host",
    b" terminated with signal ": "a limit of the host",
    b"File too large": "a limit of the host",
    b"virtual memory exhausted": "the host's memory",
    b"out of memory": "the host's memory",
    b"Cannot allocate memory": "the host's memory",
    b"No space left on device": "the host's memory",
    b"cannot execute": "a program that the host has not",
    b"execvp": "a program that the host has not",
    b"posix_spawn": "a program that the host has not",
    b"Permission denied": "permissions, which the host does not see",
    b"error while loading shared libraries": "the host's libraries",
    b"ERROR: ld.so": "the host's libraries",
    # A native ld looks for what libraries need in more places than a cross ld does.
    b"try using -rpath or -rpath-link": "libraries of libraries",
    b"plugin needed to handle lto object": "link-time optimization",
    b"lto1": "link-time optimization",
    b"lto-wrapper": "link-time optimization",
    b"conversion from": "tables of characters",
    b"invalid-pch": "a precompiled header",
}


def doubt(status: int, stderr: bytes) -> str:
    """Why what a host's tool says is not to be believed; empty when it is.

    Complaints about libraries are looked for in successes as well.
    """
    for words, reason in _DOUBTS.items():
        if words in stderr and (status != 0 or words.startswith(b"try")):
            return reason
    return ""


def _text(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")


def _environment(environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    for name in _REFUSED:
        if name in environ:
            raise _Refused(f"{name.decode()} is set")
    for name, value in environ.items():
        if (name == b"LANG" or name.startswith(b"LC_")) and value not in _LOCALES:
            raise _Refused(f"{name.decode()} names a locale of the guest's")
    # gettext translates nothing for these; configure scripts set the first.
    if environ.get(b"LANGUAGE", b"") not in (b"", b"C", b"POSIX"):
        raise _Refused("LANGUAGE names a locale of the guest's")
    return {name: environ[name] for name in _PASSED if name in environ}


class _Driver:
    """The words of one call of gcc, g++ or cpp."""

    def __init__(self, role: str, words: Sequence[str], bare: Callable[[bytes], bool]) -> None:
        self.role, self.words, self.bare = role, words, bare
        self.inputs: list[str] = []
        self.options: list[str] = []

    def check(self, linking_library: bool) -> bool:
        """Raises _Refused; returns whether the program reads its standard input."""
        waiting = iter(self.words)
        for word in waiting:
            _check_system(word)
            if word.startswith("-") and word != "-":
                self.option(word, waiting)
            else:
                self.inputs.append(word)
        quiet = self.role == "cpp" or bool(_NO_OUTPUT.intersection(self.options))
        self.check_inputs(quiet)
        if linking_library and self.inputs and not quiet and not {"-c", "-S"} & set(self.options):
            raise _Refused("LD_LIBRARY_PATH is set")
        if "-v" in self.options and self.inputs:
            raise _Refused("-v: it tells of the compiler's own file")
        alone = self.role == "cpp" and not self.inputs and not _TELLS & set(self.options)
        return alone or "-" in self.inputs

    def compiles(self) -> bool:
        """Whether sources become more than text; -### would show words that were added."""
        quiet = self.role == "cpp" or bool({*_NO_OUTPUT, "-###"}.intersection(self.options))
        linked = all(re.search(r"\.(o|a|so|s|S|lo|obj)$", name) for name in self.inputs)
        return not quiet and not linked

    def option(self, word: str, waiting: Iterator[str]) -> None:
        if word.startswith(("--print-", "--dump")):
            word = word[1:]
        if word.startswith("-B"):
            # What is linked may come from there, but no program.
            folder = word[2:] or next(waiting, "")
            if folder.endswith("/") and self.bare(folder.encode("utf-8", "surrogateescape")):
                return
        for start, reason in COMPILER.refused.items():
            if word.startswith(start) and word not in COMPILER.known:
                raise _Refused(f"{word}: {reason}")
        self.options.append(word)
        if word in COMPILER.valued:
            value = next(waiting, "")
            _check_system(value)
            self.value(word, value)
        elif not _is_known(word):
            raise _Refused(f"{word}: an option that is not known here")
        else:
            self.joined(word)

    def value(self, option: str, value: str) -> None:
        if option == "-x" and value not in _LANGUAGES:
            raise _Refused(f"-x {value}: a language that is not known here")
        if option in _PASSED_ON:
            self.pass_on(_PASSED_ON[option], [value])

    def joined(self, word: str) -> None:
        """An option with its value in the same word."""
        if word.startswith("-x"):
            self.value("-x", word[2:])
        for start, tool in _PASSED_ON.items():
            if word.startswith(start):
                self.pass_on(tool, word.split(",")[1:])

    @staticmethod
    def pass_on(tool: Tool | None, words: Sequence[str]) -> None:
        """Words for the programs that the driver runs; None is the compiler proper."""
        for word in words:
            if tool is not None:
                _check_word(word, tool)
            elif word.startswith(tuple(COMPILER.refused)):
                raise _Refused(f"{word}: an option for the compiler proper")

    def check_inputs(self, quiet: bool) -> None:
        for name in self.inputs:
            if _OTHER_LANGUAGES.search(name):
                raise _Refused(f"{name}: a language that is not known here")
            if _HEADERS.search(name) and not quiet:
                raise _Refused("a precompiled header fits one compiler only")


# What the driver hands to others, by the option that says so.
_PASSED_ON: Mapping[str, Tool | None] = {
    "-Wl,": LINKER,
    "-Xlinker": LINKER,
    "-Wa,": ASSEMBLER,
    "-Xassembler": ASSEMBLER,
    "-Wp,": None,
    "-Xpreprocessor": None,
}


def _is_known(word: str) -> bool:
    if word in COMPILER.known or word.startswith(COMPILER.families):
        return True
    if word.startswith("-print-prog-name="):
        return word.partition("=")[2] in _ASKED
    return word[:2] in COMPILER.valued and len(word) > 2 and word[1] != "-"


def _check_system(word: str) -> None:
    if _SYSTEM.search(word):
        raise _Refused(f"{word}: a file that is not the same on the host")


def _check_tool(role: str, words: Sequence[str], environ: Mapping[bytes, bytes]) -> bool:
    """Checks a call of one of the binutils; returns whether it reads its standard input."""
    for word in words:
        _check_system(word)
    if role == "ar":
        _check_archiver(words)
        return False
    if role not in TOOLS:
        raise _Refused(f"{role} is not run on the host")
    for word in words:
        _check_word(word, TOOLS[role])
    names = _names(words, TOOLS[role])
    if role == "ld" and names and _LINKING in environ:
        raise _Refused("LD_LIBRARY_PATH is set")
    if role == "objcopy" and len(names) != 1:
        raise _Refused("objcopy to another file: its mode is that of one the host does not see")
    return role == "as" and not _TELLS & set(words) and (not names or "-" in names)


def _names(words: Sequence[str], tool: Tool) -> list[str]:
    """The words that are neither options nor the values of options with one letter."""
    names = []
    waiting = iter(words)
    for word in waiting:
        if word == "-" or not word.startswith("-"):
            names.append(word)
        elif len(word) == 2 and word[1] in tool.valued:
            next(waiting, "")
    return names


def _check_word(word: str, tool: Tool) -> None:
    """Refuses a word that is, or shortens, one of the tool's refused options."""
    if not word.startswith("-") or word in ("-", "--"):
        return
    name = word.lstrip("-").partition("=")[0]
    long = word.startswith("--") or (tool.lone and len(name) > 1)
    for refused, reason in tool.refused.items():
        if long and len(refused) > 1 and (refused.startswith(name) or name.startswith(refused)):
            raise _Refused(f"{word}: {reason}")
    if word.startswith("--") or tool.lone:
        return
    for letter in word[1:]:
        if letter in tool.refused:
            raise _Refused(f"-{letter}: {tool.refused[letter]}")
        if letter in tool.valued:
            return


def _check_archiver(words: Sequence[str]) -> None:
    """ar's first word is its operation; those that need what the host does not see are refused."""
    names = [word for word in words if not word.startswith("--")]
    for word in words:
        if word.startswith("--") and word not in ("--version", "--help", "--thin"):
            raise _Refused(f"{word}: an option that is not known here")
    if not names and words:
        return
    if len(names) < 2 or not re.fullmatch(r"-?[a-zA-Z]+", names[0]):
        raise _Refused("a call of ar that is not known here")
    for letter in "xoUNMl":
        if letter in names[0]:
            raise _Refused(f"ar {names[0]}: it depends on what the host does not see")
    if any(word.startswith("-") for word in names[1:]):
        raise _Refused("a call of ar that is not known here")
