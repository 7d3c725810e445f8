"""Calls of compilers and binutils, one a line, and all that comes of them.

The sources that they want lie in a folder for each call, so that none sees what another has made.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["CALLS", "digest_script", "outcomes", "sources"]

A_C = """\
#include <stdio.h>
#include "a.h"
int twice(int x) { return 2 * x + A; }
#ifdef MAIN
int main(int n, char **v) { printf("%s %d\\n", __FILE__, twice(n)); return 0; }
#endif
"""
# Text: a file of it; a path: a link to it.
SOURCES: dict[str, str | Path] = {
    "a.c": A_C,
    "with space.c": A_C,
    os.fsdecode(b"n\377.c"): A_C,
    "real/a.h": "#define A 1\n",
    "a.h": Path("real/a.h"),
    "sub/linked": Path("../real"),
    "m.c": "int main(void) { extern int twice(int); return twice(20) - 41; }\n",
    "e.c": "int broken(void) { return nothing }\n",
    "w.c": "int unused(void) { int x; return 0; }\n",
    "h.c": '#include "missing.h"\n',
    "s.s": '.globl f\nf: bx lr\n.ident "by hand"\n',
    "t.S": "#define R bx lr\n.globl g\ng: R\n",
    "c.cc": "#include <vector>\nint f(int n) { std::vector<int> v(n); return v.size(); }\n",
    "args": '-O1 -c "a.c"\n-o at.o\n',
}

# One call a line, each a shell command in a folder of its own with the sources. Those with ~ have
# parts that the host leaves to the guest.
CALLS = r"""
gcc -O2 -c a.c
gcc -O2 -g -c a.c -o sub/a.o
cc -c a.c -Isub/linked -MD -MF sub/a.d
gcc -MMD -MP -c a.c m.c
gcc -DMAIN -O1 a.c && ./a.out x y
gcc -o prog a.c m.c -Wall && ./prog
gcc -S a.c
~gcc -S -fverbose-asm a.c -o /dev/null
gcc -E a.c
gcc -E -dM - </dev/null
gcc -M a.c
echo 'int piped;' | gcc -xc -c - -o p.o
gcc @args
gcc -c 'with space.c' -o 'o p.o'
gcc -c n*.c
gcc -c a.c -o /dev/null
gcc -c e.c
gcc -c h.c
gcc -Wall -Wextra -c w.c
gcc m.c
gcc -c nothere.c
gcc --version
gcc -dumpmachine
gcc -print-search-dirs
gcc -print-file-name=crti.o; gcc -print-prog-name=as; gcc -print-libgcc-file-name
gcc -fno-such-option -c a.c
as s.s -o s.o && ld -r s.o -o r.o && nm r.o
gcc -c t.S s.s
gcc -c a.c && ar rc l.a a.o && ranlib l.a && gcc m.c l.a -o x && ./x && strip x && nm l.a
~gcc -c a.c && objcopy -O binary a.o a.bin && objcopy --only-section=.text a.o b.o
g++ -O2 -g -c c.cc
umask 077; gcc -DMAIN a.c -o x
gcc -save-temps -c a.c
gcc -shared -fPIC a.c -o liba.so && gcc m.c -L. -la -Wl,-rpath,'$ORIGIN' -o x && ./x
gcc -static -DMAIN a.c -o x && ./x
cpp a.c out.i; cpp -P <a.c
echo old >real/k.o; ln real/k.o hard.o; ln -s real/k.o soft.o; gcc -c a.c -o hard.o
echo old >real/k.o; ln real/k.o hard.o; ln -s real/k.o soft.o; gcc -c a.c -o soft.o
echo old >real/k.s; ln real/k.s hard.s; ln -s real/k.s soft.s; gcc -S a.c -o soft.s
echo '#define A 7' >new.h; rm a.h; mv new.h a.h; gcc -c a.c; rm a.h; ln -s real/a.h a.h; gcc -S a.c
gcc -c a.c; chmod 600 a.o; strip -g a.o
arm-linux-gnueabi-gcc -c a.c && gcc-12 -c m.c
cd sub && gcc -I.. -c ../a.c && gcc -I../real -g -c "$PWD/../a.c" -o b.o
seq 3 | while read x; do gcc -c a.c; echo $x; done
mkdir own; gcc -c t.S -o own/crti.o; gcc -shared -fPIC -Bown/ a.c -o l.so; nm l.so
~mkdir own; printf '#!/bin/sh\necho own "$1"\n' >own/as; chmod +x own/as; gcc -Bown/ -c a.c
"""


def sources(folders: Sequence[str]) -> io.BytesIO:
    """A tarball with all sources in each of the folders."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in folders:
            for name, what in SOURCES.items():
                entry = tarfile.TarInfo(f"{folder}/{name}")
                if isinstance(what, Path):
                    entry.type, entry.linkname = tarfile.SYMTYPE, str(what)
                    tar.addfile(entry)
                else:
                    entry.size = len(what)
                    tar.addfile(entry, io.BytesIO(what.encode()))
    archive.seek(0)
    return archive


def digest_script(calls: Sequence[str], first: int = 0) -> str:
    """A shell script that runs each call in a folder with the sources, named by its number, and
    then prints all that came of them, each line with the number of its call."""
    body = [
        f"cd {number}\n(\n{call}\n) >../out.{number} 2>../err.{number}\n"
        f"echo $? >../status.{number}; cd ..\n"
        for number, call in enumerate(calls, first)
    ]
    return (
        f"cd /work/t\n{''.join(body)}grep -a '' status.* out.* err.*\n"
        "find * -type l -printf '%p %l\\n' -o -type f -printf '%p %m %n %s\\n'\n"
        "find [0-9]* -type f -exec sha256sum {} +\n"
    )


# What a line belongs to, after the checksum that it may begin with.
_OF_CALL = re.compile(rb"(?:[0-9a-f]{64} [ *])?(?:(status|out|err)\.)?(\d+)[/: ]?")


def outcomes(output: bytes) -> dict[int, list[str]]:
    """For each call its status, what it said, and all its files; names of temporary files differ
    each time."""
    text = re.sub(rb"/tmp/cc\w{6}", b"/tmp/ccXXXXXX", output)
    found: dict[int, list[str]] = {}
    for line in text.splitlines():
        of = _OF_CALL.match(line)
        assert of is not None, line
        found.setdefault(int(of[2]), []).append(line.decode(errors="backslashreplace"))
    # Lines that a call has said are in their order; files come in any.
    return {number: sorted(lines, key=_file) for number, lines in found.items()}


def _file(line: str) -> str:
    return "" if re.match(r"(status|out|err)\.\d+:", line) else line
