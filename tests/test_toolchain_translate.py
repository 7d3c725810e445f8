"""What is passed on, what is refused: tables of calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestctl.toolchain import Command, Pairing, Refusal, Toolchain, doubt, translate
from guestctl.toolchain.response import split

TOOLCHAIN = Toolchain(
    arch="armv5l", triplet="arm-linux-gnueabi", major="12", version="12.2.0", configure="",
    binutils="2.40", moved=True, prefixes=("/usr",), programs=(), packages={}, path=Path("/none"),
)  # fmt: skip


def call(
    line: str, environ: dict[bytes, bytes] | None = None, files: dict[bytes, bytes] | None = None
) -> Command | Refusal:
    role, *words = line.split(" ")
    pairing = Pairing(TOOLCHAIN, role, b"/usr/bin/x", "/usr", ((b"a", b"/a"),), ())
    argv = [word.encode() for word in (role, *words)]
    return translate(pairing, b"/usr/bin/" + argv[0], argv, environ or {}, (files or {}).get)


PASSED = [
    "gcc -c a.c",
    "gcc -O2 -g3 -Wall -fPIC -march=armv5te -c -o dir/a.o a.c -MD -MF .deps/a.d -MT a.o -MP",
    "gcc -o conftest conftest.c -lm",
    "gcc -E conftest.c",
    "gcc -E -x c /dev/null",
    "gcc -c -o /dev/null a.c",
    "gcc --version",
    "gcc -v",
    "gcc -dumpmachine",
    "gcc -V",
    "gcc -qversion",
    "gcc --print-search-dirs",
    "gcc -mabi=aapcs-linux -mno-thumb-interwork -Wp,-MMD,.a.o.d -nostdinc -D__KERNEL__ -c a.c",
    "nm -B /dev/null",
    "ar cDPrST built-in.a a.o",
    "gcc -print-search-dirs",
    "gcc -print-prog-name=ld",
    "gcc -print-file-name=libgcc.a",
    "gcc -Wl,-rpath,/usr/lib -Wl,--as-needed -Wl,-Map=out.map a.o",
    "gcc -Xlinker -rpath -Xlinker /usr/lib a.o -shared -o liba.so",
    "gcc -Wa,--noexecstack -Wp,-MD,.a.d -c a.S",
    "gcc -xc a -xnone b.o",
    "gcc -I/usr/include -isystem /usr/x -iquote. -Dx=/tmp/y -include config.h -c a.c",
    "gcc -fsyntax-only a.h",
    "gcc -E a.h",
    "gcc --param max-inline=3 --param=x=1 -c a.c",
    "gcc -save-temps=obj -pipe -S a.i",
    "gcc -m64 -c a.c",
    "gcc a.c b.c -o c",
    "g++ -std=c++17 -fno-rtti -c a.cc",
    "cpp a.h",
    "cpp -P a.c",
    "as -o a.o a.s",
    "as -march=armv5te -mfloat-abi=soft -o a.o a.s",
    "ld -r -o a.o b.o c.o",
    "ld -Ttext 0x8000 -T script.lds -soname x -e start -o a b.o -static",
    "ld --version",
    "ar cru liba.a a.o b.o",
    "ar rc liba.a a.o",
    "ar -rcs liba.a a.o",
    "ar t liba.a",
    "ar d liba.a x.o",
    "ar --version",
    "ranlib liba.a",
    "nm -B a.o",
    "nm -u a.o",
    "strip a",
    "strip -s --strip-unneeded -R .comment a",
    "strip --strip-debug a b c",
    "objcopy --strip-debug a",
]


@pytest.mark.parametrize("line", PASSED)
def test_passed(line: str) -> None:
    made = call(line)
    assert isinstance(made, Command), made
    own = [word for word in made.argv if b"invalid-pch" not in word]
    assert own == [word.encode() for word in line.split(" ")]
    assert made.program == b"/usr/bin/x"
    assert made.binds == ((b"a", b"/a"),)
    assert not made.reads_stdin


REFUSED = [
    "gcc -fplugin=./x.so -c a.c",
    "gcc -fplugin-arg-x-y -c a.c",
    "gcc -wrapper sh,-c -c a.c",
    "gcc -specs=./x -c a.c",
    "gcc -specs ./x -c a.c",
    "gcc --specs=./x -c a.c",
    "gcc -B. -c a.c",
    "gcc -B ./x -c a.c",
    "gcc -Bx/ -c a.c",
    "gcc --prefix=x -c a.c",
    "gcc --print-prog-name=objdump",
    "gcc -b arm -c a.c",
    "gcc -fuse-ld=gold a.o",
    "gcc -flto -c a.c",
    "gcc -march=native -c a.c",
    "gcc -mtune=native -c a.c",
    "gcc -m32 -c a.c",
    "gcc -mfloat-abi=hard -c a.c",
    "gcc --sysroot=/x -c a.c",
    "gcc -isysroot /x -c a.c",
    "gcc -no-canonical-prefixes -c a.c",
    "gcc -finput-charset=latin1 -c a.c",
    "gcc -gsplit-dwarf -c a.c",
    "gcc -print-prog-name=objdump",
    "gcc -v -c a.c",
    "gcc -Q -c a.c",
    "gcc --help=target",
    "gcc -ftime-report -c a.c",
    "gcc a.h",
    "gcc -c a.h -o a.h.gch",
    "gcc -x c-header a",
    "gcc -xc-header a",
    "gcc -x fortran a",
    "gcc -c a.f90",
    "gcc -Wl,-plugin,./x.so a.o",
    "gcc -Wl,--plug=./x.so a.o",
    "gcc -Xlinker --plugin -Xlinker x.so a.o",
    "gcc -Wl,--sysroot=/x a.o",
    "gcc -Wa,--statistics -c a.s",
    "gcc -Wp,-fplugin=x -c a.c",
    "gcc -Xpreprocessor -fplugin=x -c a.c",
    "gcc -o /dev/stdout -c a.c",
    "gcc -o/dev/stdout -c a.c",
    "gcc -c /dev/stdin",
    "gcc -c /proc/self/fd/0",
    "gcc -include /proc/self/maps -c a.c",
    "gcc -fno-such-thing --odd a.c",
    "gcc --include-barrier a.c",
    "cpp -fplugin=x a.c",
    "ld -plugin x.so a.o",
    "ld --plugin=x.so a.o",
    "ld -plugin-opt=x a.o",
    "ld --sysroot=/x a.o",
    "as --statistics a.s",
    "ar x liba.a",
    "ar -x liba.a a.o",
    "ar rcU liba.a a.o",
    "ar -M",
    "ar",
    "ar --plugin x rc liba.a a.o",
    "ar rc --plugin=x liba.a a.o",
    "ar rc liba.a -x",
    "ranlib -U liba.a",
    "ranlib -t liba.a",
    "ranlib --plugin=x liba.a",
    "nm --plugin x a.o",
    "nm --plug x a.o",
    "strip -o b a",
    "strip -sp a",
    "strip -so b a",
    "strip --preserve-dates a",
    "strip --pres a",
    "strip --plugin=x a",
    "objcopy a b",
    "objcopy -p a",
    "readelf -a a",
    "lto-wrapper a",
]


@pytest.mark.parametrize("line", REFUSED)
def test_refused(line: str) -> None:
    made = call(line)
    assert isinstance(made, Refusal), made
    assert made.reason


@pytest.mark.parametrize(
    ("word", "passed"), [("-Bown/", True), ("-Bown", False), ("-B/x/", False), ("-B", False)]
)
def test_a_folder_that_is_searched_first_must_have_no_program(word: str, passed: bool) -> None:
    pairing = Pairing(TOOLCHAIN, "gcc", b"/usr/bin/x", "/usr", (), ())
    argv = [b"gcc", b"-shared", word.encode(), b"a.o"]
    made = translate(pairing, b"/usr/bin/gcc", argv, {}, bare=b"own/".__eq__)
    assert isinstance(made, Command) == passed


@pytest.mark.parametrize(
    "line", ["gcc -E -", "gcc -x c -c - -o a.o", "cpp", "cpp -P", "as -o a.o", "as -- -o a.o"]
)
def test_those_that_read_their_standard_input(line: str) -> None:
    made = call(line)
    assert isinstance(made, Command)
    assert made.reads_stdin


def test_options_in_response_files_are_looked_at() -> None:
    files = {
        b"a": b'-O2 "-DX=a b" @b\n',
        b"b": b"-c a.c",
        b"bad": b"'-fplugin=x'",
        b"loop": b"@loop",
    }
    assert isinstance(call("gcc @a", files=files), Command)
    assert isinstance(call("gcc @bad -c a.c", files=files), Refusal)
    assert isinstance(call("gcc -c a.c @loop", files=files), Refusal)
    # What names no file is a word like any other.
    assert isinstance(call("gcc @missing", files=files), Command)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a b\n\tc ", [b"a", b"b", b"c"]),
        (b"'a b' \"c d\"e", [b"a b", b"c de"]),
        (b"a\\ b '' \\'", [b"a b", b"", b"'"]),
        (b"\"a\\\"b\" 'it\\'s'", [b'a"b', b"it's"]),
        (b"", []),
        (b"'open", [b"open"]),
    ],
)
def test_response_files_are_split_as_libiberty_does(text: bytes, words: list[bytes]) -> None:
    assert split(text) == words


@pytest.mark.parametrize(
    "environ",
    [
        {b"COMPILER_PATH": b"/x"},
        {b"GCC_EXEC_PREFIX": b"/x"},
        {b"GCC_COMPARE_DEBUG": b"1"},
        {b"DEPENDENCIES_OUTPUT": b"deps"},
        {b"LD_PRELOAD": b"x.so"},
        {b"LC_ALL": b"de_DE.UTF-8"},
        {b"LANG": b"en_US"},
        {b"LANGUAGE": b"de:C"},
        {b"LD_LIBRARY_PATH": b"/x"},
    ],
)
def test_environment_that_is_refused(environ: dict[bytes, bytes]) -> None:
    assert isinstance(call("gcc a.o", environ), Refusal)


def test_what_configure_scripts_set_is_passed_on() -> None:
    environ = {b"LC_ALL": b"C", b"LANGUAGE": b"C"}
    made = call("gcc -c a.c", environ)
    assert isinstance(made, Command)
    assert made.environ == environ


def test_environment_that_is_passed_on() -> None:
    environ = {b"PATH": b"/bin", b"LANG": b"C.UTF-8", b"CPATH": b"/inc", b"HOME": b"/root",
               b"LD_LIBRARY_PATH": b"/x"}  # fmt: skip
    made = call("gcc -c a.c", environ)
    assert isinstance(made, Command)
    assert made.environ == {b"PATH": b"/bin", b"LANG": b"C.UTF-8", b"CPATH": b"/inc"}


@pytest.mark.parametrize(
    ("line", "guarded"),
    [("gcc -c a.c", True), ("gcc a.c b.o", True), ("g++ -x c++ a", True), ("gcc a.o", False),
     ("gcc -E a.c", False), ("gcc -### a.c", False), ("gcc --version", False),
     ("cpp a.c", False), ("as a.s", False)],
)  # fmt: skip
def test_a_guests_precompiled_header_is_not_passed_over_in_silence(
    line: str, guarded: bool
) -> None:
    made = call(line)
    assert isinstance(made, Command)
    assert (b"-Werror=invalid-pch" in made.argv) == guarded
    assert doubt(1, b"a.h.gch: created by a different GCC executable [-Werror=invalid-pch]")


def test_a_path_to_the_stub_becomes_that_of_the_program() -> None:
    pairing = Pairing(TOOLCHAIN, "gcc", b"/usr/bin/real", "/usr", (), ())
    made = translate(pairing, b"/usr/bin/gcc", [b"/tools/offload/bin/gcc", b"-v"], {})
    assert isinstance(made, Command)
    assert made.argv == (b"/usr/bin/gcc", b"-v")
    assert isinstance(translate(pairing, b"/usr/bin/gcc", [], {}), Refusal)


def test_what_only_the_guest_can_judge() -> None:
    assert doubt(1, b"a.c:1: error: expected ';'") == ""
    assert doubt(1, b"cc1: internal compiler error: Killed") != ""
    assert doubt(1, b"a.c: Permission denied") != ""
    assert doubt(1, b"gcc: fatal error: File size limit exceeded signal terminated program as")
    assert doubt(1, b"collect2: fatal error: ld terminated with signal 25 [File size limit]")
    assert doubt(
        0, b"ld: warning: liba.so, needed by b, not found (try using -rpath or -rpath-link)"
    )
    assert doubt(0, b"warning: Permission denied is a text") == ""
