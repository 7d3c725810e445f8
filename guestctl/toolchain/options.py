"""What is done with each option of gcc and binutils: a table a program. Pure.

An option is passed on when the host's program gives the guest's outcome with it. One that would
run other programs, read what differs on the host, or leave what only its maker can read is refused,
and so is one that no table knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ASSEMBLER", "COMPILER", "DRIVERS", "LINKER", "TOOLS", "Table", "Tool"]


@dataclass(frozen=True)
class Table:
    """A driver's options.

    `refused` are beginnings of options and why they are refused; they are looked up first.
    `valued` take a value, in the same word or the next; `known` are whole options, `families`
    beginnings of options.
    """

    refused: Mapping[str, str]
    valued: frozenset[str]
    known: frozenset[str]
    families: tuple[str, ...]


@dataclass(frozen=True)
class Tool:
    """A tool's options, which getopt_long reads: words may be shortened, letters joined.

    `refused` are letters and long names, with why; others are passed on. `valued` are the letters
    that take a value. With `lone`, long names may have one dash (getopt_long_only).
    """

    refused: Mapping[str, str]
    valued: str = ""
    lone: bool = False


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_RUNS = "it would run another program"
_OTHER = "another target or another compiler"
_PLACES = "it changes where the compiler finds its parts"
_CPU = "it asks for the processor at hand"
_LTO = "link-time optimization runs in the guest"
_HOST = "it tells of the machine that compiles"
_METADATA = "it depends on owners, modes or times that the host does not see"

COMPILER = Table(
    refused={
        "-fplugin": _RUNS,
        "-wrapper": _RUNS,
        "-specs": _RUNS,
        "--specs": _RUNS,
        "-fuse-ld": _RUNS,
        "-gsplit-dwarf": _RUNS,
        "-foffload": _RUNS,
        "-B": _PLACES,
        "-iplugindir": _PLACES,
        "-iprefix": _PLACES,
        "-iwithprefix": _PLACES,
        "-isysroot": _PLACES,
        "-imultilib": _PLACES,
        "-imultiarch": _PLACES,
        "-no-canonical-prefixes": _PLACES,
        "-stdlib": _PLACES,
        "-b": _OTHER,
        "-m16": _OTHER,
        "-m32": _OTHER,
        "-mx32": _OTHER,
        "-mandroid": _OTHER,
        "-mbig-endian": _OTHER,
        "-mfloat-abi=hard": _OTHER,
        "-march=native": _CPU,
        "-mtune=native": _CPU,
        "-mcpu=native": _CPU,
        "-flto": _LTO,
        "-fuse-linker-plugin": _LTO,
        "-fwpa": _LTO,
        "-fltrans": _LTO,
        "-ffat-lto-objects": _LTO,
        "-fcompare-debug": _RUNS,
        "-fpch": "precompiled headers fit one compiler only",
        "-finput-charset": "it needs tables of characters",
        "-fexec-charset": "it needs tables of characters",
        "-fwide-exec-charset": "it needs tables of characters",
        "-fmodules": "C++ modules ask other programs",
        "-fmodule-": "C++ modules ask other programs",
        "-fauto-profile": "it needs a profile's reader",
        "-ftime-report": _HOST,
        "-fmem-report": _HOST,
        "-fpre-ipa-mem-report": _HOST,
        "-fpost-ipa-mem-report": _HOST,
        "-freport-bug": _HOST,
        "-time": _HOST,
        "-Q": _HOST,
        "-Winvalid-pch": "precompiled headers fit one compiler only",
        "-frecord-gcc-switches": "it records all options",
        "-fverbose-asm": "it records all options",
    },
    valued=_words(
        "-o -I -L -D -U -l -A -T -u -z -e -x -include -imacros -iquote -isystem -idirafter -MF -MT"
        " -MQ -aux-info --param -Xlinker -Xassembler -Xpreprocessor -dumpdir -dumpbase"
        " -dumpbase-ext"
    ),
    known=_words(
        "- -c -S -E -M -MM -MD -MMD -MG -MP -P -C -CC -H -s -w -r -t -n -N -p -pg -### -pipe"
        " -pthread -static -shared -static-pie -pie -no-pie -rdynamic -symbolic -nostdinc"
        " -nostdinc++ -nostdlib -nodefaultlibs -nostartfiles -nolibc -static-libgcc"
        " -static-libstdc++ -static-libasan -static-libubsan -shared-libgcc -ansi -traditional"
        " -traditional-cpp -no-integrated-cpp -undef -trigraphs -remap -pedantic -pedantic-errors"
        " -save-temps -posix -Qn -Qy -v --version --help --target-help -dumpversion"
        " -dumpfullversion -dumpmachine -dumpspecs -print-search-dirs -print-libgcc-file-name"
        " -print-multi-directory -print-multi-lib -print-multi-os-directory -print-multiarch"
        " -print-sysroot -print-sysroot-headers-suffix --coverage -coverage -pass-exit-codes"
        " -dM -dD -dI -dN -dU -dA -dp -dP -da -dx"
        " -V -qversion -version"  # gcc knows none of these: configure tries them
    ),
    families=(
        "-f", "-m", "-W", "-O", "-g", "-std=", "--std=", "-save-temps=", "-print-file-name=",
        "--param=", "-isystem", "-iquote", "-idirafter", "-include", "-imacros", "-MF", "-MT",
        "-MQ",
    ),
)  # fmt: skip

LINKER = Tool(
    refused={
        "plugin": _RUNS,
        "plugin-opt": _RUNS,
        "sysroot": _PLACES,
        "stats": _HOST,
    },
    valued="oeLlTuzmyRhbAFfacIYG",
    lone=True,
)

ASSEMBLER = Tool(refused={"statistics": _HOST}, valued="oI", lone=True)

TOOLS: Mapping[str, Tool] = {
    "as": ASSEMBLER,
    "ld": LINKER,
    "nm": Tool(refused={"plugin": _RUNS}, valued="tfEX"),
    "ranlib": Tool(
        refused={"plugin": _RUNS, "U": _METADATA, "t": _METADATA},
    ),
    "strip": Tool(
        refused={
            "plugin": _RUNS,
            "o": _METADATA,
            "p": _METADATA,
            "preserve-dates": _METADATA,
            "U": _METADATA,
            "disable-deterministic-archives": _METADATA,
        },
        valued="IOFKNR",
    ),
    "objcopy": Tool(
        refused={
            "plugin": _RUNS,
            "p": _METADATA,
            "preserve-dates": _METADATA,
            "U": _METADATA,
            "disable-deterministic-archives": _METADATA,
        },
        valued="IOFBbiKNLGWRj",
    ),
}

DRIVERS = ("gcc", "g++", "cpp")
