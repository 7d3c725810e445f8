"""Offload with real guests: the host compiles, and nobody in the guest can tell.

A table of calls is run with the stubs first in PATH and again without: files, links, modes, output
and status must be the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from guestctl import Guest, GuestLost, Pool, image, stage
from guestctl.offload import Entry, read_ledger
from guestctl.packages import Archive
from guestctl.places import Places
from guestctl.recipe import parse_lock
from guestctl.rundir import flocked
from guestctl.toolchain import install
from tests.fairness import until

from .conftest import ARCH
from .shells import coherence, reasons, settle, sh

SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
LOCK = Path(__file__).parent.parent.parent / "examples" / "demo.lock"
NATIVE = "PATH=/usr/lib/guestctl/static:/usr/local/bin:/usr/bin:/bin"
# Seconds that the guest's own tools may take, for what they have not done before.
NATIVE_MOST = 1500

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


@pytest.fixture
def guest(offload_guest: Guest) -> Guest:
    return offload_guest


def native(guest: Guest, places: Places, *scripts: str) -> list[bytes]:
    """The same scripts with the guest's own tools. They are slow, and what they say is the same for
    one image, so it is kept in the user's cache. Whoever else needs them at the same time, with a
    guest of the other security model, takes those that nobody has begun.
    """
    root = image.load(ARCH, cache_dir=places.cache).facts()["files"]["root"]
    folder = places.cache / "tests"
    folder.mkdir(exist_ok=True)
    kept = {
        folder / hashlib.sha256(f"{root}{script}".encode()).hexdigest(): script
        for script in scripts
    }

    def answered(path: Path) -> bool:
        lock = None if path.exists() else flocked(path.with_suffix(".lock"))
        if lock is not None:
            if not path.exists():
                answer = guest.run(["bash", "-c", f"{NATIVE}\n{kept[path]}"], timeout=NATIVE_MOST)
                aside = path.with_suffix(f".{os.getpid()}")
                aside.write_bytes(answer.check().stdout)
                aside.rename(path)
            path.with_suffix(".lock").unlink()
            os.close(lock)
        return path.exists()

    until(lambda: not [path for path in kept if not answered(path)], NATIVE_MOST)
    return [path.read_bytes() for path in kept]


@pytest.mark.timeout(NATIVE_MOST)
def test_every_call_has_the_guests_own_outcome(offload_pool: Pool, places: Places) -> None:
    lines = CALLS.strip().splitlines()
    plain = [line.removeprefix("~") for line in lines]
    parts = []
    for at in range(0, len(plain), 8):
        script = digest_script(plain[at : at + 8], at)
        numbers = " ".join(str(number) for number in range(at, min(at + 8, len(plain))))
        copy = f"for n in {numbers}; do cp -dR ../src $n || exit 1; done"
        parts.append(f"rm -rf /work/t; mkdir /work/t; cd /work/t; {copy}\n{script}")
    with offload_pool.lease(timeout=60) as guest:
        with guest.mounted():
            guest.run(["sh", "-c", "rm -rf /work/*"], timeout=60).check()
        folders = ["src", *(f"t/{number}" for number in range(len(lines)))]
        stage(sources(folders), guest.work)
        assert guest.offload is not None
        before = len(read_ledger(guest.offload.ledger.path))
        with guest.mounted():
            run = guest.run(["bash", "-c", digest_script(plain)], timeout=600)
            settle(guest)
            made = read_ledger(guest.offload.ledger.path)[before:]
            answers = native(guest, places, *parts)
    fast = outcomes(run.check().stdout)
    slow = outcomes(b"".join(answers))
    assert sorted(fast) == sorted(slow) == list(range(len(lines)))
    for number, line in enumerate(lines):
        assert fast[number] == slow[number], line
    # And it was the host that did it.
    left = [line for line in lines if line.startswith("~")]
    local = [" ".join(entry.argv) for entry in made if entry.where != "offload"]
    assert [call for call in local if not any(call in line for line in left)] == []
    assert len(local) == 3
    assert len(made) > len(lines)


def test_what_the_host_cannot_see_runs_in_the_guest(
    guest: Guest, calls: Callable[[], list[Entry]]
) -> None:
    script = """
        cd /work; echo 'int x;' >x.c; cp x.c /tmp/x.c
        ar rc /tmp/x.a x.c
        gcc -c -fplugin=nope.so x.c 2>/dev/null; COMPILER_PATH=/x gcc -dumpversion
        gcc -E - </dev/null -o /dev/stdout | head -1
        unshare -m gcc -dumpversion
    """
    sh(guest, script)
    found = reasons(calls())
    assert found[0] == "out of the host's sight: /tmp/x.a"
    assert "-fplugin=nope.so" in found[1]
    assert "COMPILER_PATH" in found[2]
    assert "/dev/stdout" in found[3]
    assert found[4:] == ["a process with mounts of its own"]


def test_a_changed_image_is_no_longer_what_the_host_has(
    armv5l_image: image.Image, places: Places
) -> None:
    install(ARCH, cache_dir=places.cache)
    with Pool(ARCH, 1, places=places) as pool, pool.lease(timeout=60) as guest:
        assert guest.offload is not None
        with guest.mounted():
            sh(
                guest,
                "echo '#define X' >/usr/include/x.h; echo '#include <x.h>' | gcc -E - | tail -1",
            )
            settle(guest)
            (entry,) = read_ledger(guest.offload.ledger.path)
            assert entry.reason == "the guest has changed its image: /usr"
            allowed = guest.run(["gcc", "-dumpversion"], timeout=60, max_local=100)
            assert allowed.status == 0
            refused = guest.run(["gcc", "-dumpversion"], timeout=60, max_local=99)
    assert (refused.outcome, refused.status) == ("error", 125)
    assert "1 of 1 calls (100.0 %) ran in the guest, 99 % allowed" in refused.error


def source(places: Places, name: str) -> Path:
    """The locked tarball of one of the demo's packages."""
    entries = [e for e in parse_lock(LOCK.read_text(), str(LOCK)) if e.name == name]
    (path,) = Archive(places.cache / "packages", suites=SUITES).fetch(entries).values()
    return path


def test_zlib_is_configured_built_and_tested_by_its_own_scripts(
    offload_pool: Pool, places: Places
) -> None:
    with offload_pool.lease(timeout=60) as guest:
        with guest.mounted():
            guest.run(["sh", "-c", "rm -rf /work/*"], timeout=60).check()
        stage(source(places, "zlib"), guest.work, into="build")
        with guest.mounted():
            script = f"cd /work/build/* && ./configure && make -j{guest.jobs} && make test"
            result = guest.run(
                ["sh", "-ec", script], timeout=280, user=(0, 0), max_local=0.0
            ).check()
    assert b"*** zlib test OK ***" in result.stdout
    assert b"*** zlib shared test OK ***" in result.stdout


def test_lua_has_the_guests_own_objects(
    guest: Guest, calls: Callable[[], list[Entry]], places: Places
) -> None:
    tarball = source(places, "lua5.4").read_bytes()
    guest.run(["tar", "-xz", "-C", "/work"], stdin=tarball, timeout=60).check()
    flags = "-g -O2 -Wall -DLUA_USE_LINUX"
    compile_ = "; ".join(f"gcc {flags} -c {name}.c" for name in ("lapi", "lzio"))
    script = f"cd /work/lua*/src; rm -f *.o; {compile_}; sha256sum *.o"
    fast = guest.run(["sh", "-ec", script], timeout=120).check().stdout
    assert reasons(calls()) == []
    assert [fast] == native(guest, places, script)
    sh(guest, f"cd /work/lua*/ && make -s -j{guest.jobs} linux && src/lua -e 'assert(2^53)'")
    assert reasons(calls()) == []


def test_who_may_not_write_hears_it_from_the_guests_own_tool(
    guest: Guest, calls: Callable[[], list[Entry]]
) -> None:
    sh(guest, "cd /work; mkdir d; echo 'int x;' >x.c; chmod 755 . d")
    script = "gcc -c ../x.c"
    result = guest.run(["sh", "-c", script], cwd="/work/d", user=(1000, 1000), timeout=60)
    assert result.status == 1
    assert b"Permission denied" in result.stderr
    assert reasons(calls()) == ["an output cannot be written: Permission denied"]
    sh(guest, "chmod 777 /work/d")
    guest.run(["sh", "-c", script], cwd="/work/d", user=(1000, 1000), timeout=60).check()
    assert sh(guest, "stat -c '%u %a' /work/d/x.o") == "1000 644\n"


# A source that a compiler reads for very long.
BOMB = 'cd /work; echo \'#include "x.h"\n#include "x.h"\' >x.h; cp x.h x.c'


def test_a_killed_caller_takes_its_compiler_along(
    guest: Guest, calls: Callable[[], list[Entry]]
) -> None:
    before = len(calls())
    guest.run(["sh", "-c", BOMB], timeout=60).check()
    offload = guest.offload
    assert offload is not None
    process = guest.start(["gcc", "-c", "/work/x.c"])
    until(lambda: offload.slots.free() < offload.slots.count)
    process.cancel()
    assert process.wait().outcome == "signalled"
    (entry,) = calls()[before:]
    assert not guest.offload.busy
    assert entry.reason == "the caller has gone"
    assert guest.offload.slots.free() == guest.offload.slots.count


def compiling(word: str) -> list[str]:
    """The programs of this host that have a word among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if word.encode() in words:
            found.append(os.fsdecode(words[0]))
    return found


def test_a_killed_guest_takes_its_compilers_along(
    armv5l_image: image.Image, places: Places
) -> None:
    """Those that run, and those that wait for a slot."""
    install(ARCH, cache_dir=places.cache)
    name = f"bomb{os.getpid()}.c"
    with Pool(ARCH, 1, places=places) as pool, pool.lease(timeout=60) as guest:
        offload = guest.offload
        assert offload is not None
        with pytest.raises(GuestLost), guest.mounted():
            sh(guest, f"{BOMB}; cp x.c {name}")
            calls = f"gcc -c {name} & " * (2 * offload.slots.count)
            process = guest.start(["sh", "-c", f"cd /work; {calls} wait"])
            until(lambda: any("cc1" in program for program in compiling(name)))
            guest.kill()
            process.wait()
        until(lambda: not compiling(name))
        until(lambda: not offload.busy)
        until(lambda: offload.slots.free() == offload.slots.count)


def test_what_was_written_the_moment_before_is_seen(
    guest: Guest, calls: Callable[[], list[Entry]]
) -> None:
    rounds, jobs = 40, 3
    guest.run(["sh", "-c", coherence(rounds, jobs)], timeout=250).check()
    made = calls()
    assert len(made) == rounds * jobs
    assert reasons(made) == []


SECRET = Path(__file__).resolve()

# What a hostile guest might ask of the host's tools; none of it may show a file of the host.
ATTACKS = [
    f"echo '#include \"{SECRET}\"' | gcc -E -",
    f"gcc -E -include {SECRET} x.c",
    f"echo '.incbin \"{SECRET}\"' >i.s; gcc -c i.s && cat i.o",
    f"echo '.include \"{SECRET}\"' >i.s; gcc -c i.s",
    f"gcc -E @{SECRET}",
    f"echo 'INPUT({SECRET})' >l.ld; gcc x.c -T l.ld",
    f"ld -r -b binary {SECRET} -o b.o; cat b.o",
    f"ar rcT t.a {SECRET}; gcc x.c t.a",
    f"ln -sf {SECRET} link.c; gcc -E link.c",
    "echo '#include \"../../../../../../../../../../etc/hostname\"' | gcc -E -",
    "gcc -fplugin=./x.so x.c",
    "gcc -B. -c x.c -o b.o",
    "gcc -specs=./s x.c",
    "gcc -wrapper ./evil x.c",
    f"CPATH={SECRET.parent} gcc -E -include {SECRET.name} x.c",
    "DEPENDENCIES_OUTPUT=/work/deps gcc -c x.c",
    "COMPILER_PATH=/work GCC_EXEC_PREFIX=/work/ gcc -c x.c",
    "gcc -c x.c -o ../../../../../../../etc/passwd2; gcc -c x.c -o /proc/self/x",
]


def test_a_hostile_guest_sees_nothing_of_the_host(guest: Guest) -> None:
    setup = "cd /work; echo 'int main(void) { return 0; }' >x.c; cp /bin/true x.so;"
    setup += " printf '#!/bin/sh\\necho EVIL on $(hostname)\\n' >evil; chmod +x evil; cp evil cc1;"
    script = setup + "".join(f"( {attack} ) 2>&1; " for attack in ATTACKS) + "true"
    output = guest.run(["bash", "-c", script], timeout=200).check().stdout
    assert b"a hostile guest" not in output.replace(b"test_a_hostile_guest", b"")
    assert b"ATTACKS" not in output
    # What is run by such options is run in the guest.
    assert all(b"on g0" in line for line in output.splitlines() if b"EVIL on" in line)


def test_what_is_out_of_sight_is_sent_by_distcc(
    guest: Guest, calls: Callable[[], list[Entry]]
) -> None:
    """Sources in /tmp are preprocessed in the guest and compiled by the host, to the same bytes."""
    each = "gcc -O2 -c 'a b.c' -o a.o; gcc -g -c 'a b.c' -o g.o; gcc -Wall -c w.c; ! gcc -c e.c"
    script = f"""
        set -e; rm -rf /tmp/d /dev/shm/distcc-*; mkdir /tmp/d; cd /tmp/d
        printf '#include <stddef.h>\\nsize_t f(size_t n) {{ return  n * 3; }}\\n' >'a b.c'
        echo 'int f(void) {{ int x; return 0; }}' >w.c; echo broken >e.c
        exec 2>&1; {each}; sha256sum *.o; {NATIVE}; echo half; {each}; sha256sum *.o; rm -r /tmp/d
    """
    fast, _, slow = sh(guest, script).partition("half\n")
    assert fast == slow
    assert "e.c:1:1" in fast
    made = calls()
    assert {entry.reason for entry in made} == {"out of the host's sight: /tmp/d"}
    assert [entry.where for entry in made] == ["distcc", "guest", "guest", "guest"]


def test_a_pool_may_offload_by_distcc_alone(armv5l_image: image.Image, places: Places) -> None:
    install(ARCH, cache_dir=places.cache)
    with Pool(ARCH, 1, places=places, offload="distcc") as pool, pool.lease(timeout=60) as guest:
        assert guest.offload is not None
        with guest.mounted():
            sh(
                guest,
                "cd /work; echo 'int main(void) { return 0; }' >m.c; gcc -c m.c; gcc m.o; ./a.out",
            )
            compiled, linked = read_ledger(guest.offload.ledger.path)
    assert (compiled.where, linked.where) == ("distcc", "guest")
    assert linked.reason == "distcc compiles only"


def test_run_says_why_nothing_is_offloaded(armv5l_image: image.Image, own_places: Places) -> None:
    """In a cache of its own, with the image and without a toolchain."""
    home = own_places.cache.parent / "home"
    home.mkdir()
    (home / "guestctl").symlink_to(own_places.cache)
    command = [sys.executable, "-m", "guestctl", "run", "--arch", ARCH, "--", "true"]
    done = subprocess.run(
        command,
        env={**os.environ, "XDG_CACHE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    why = f"guestctl: nothing is offloaded: no toolchain of {ARCH} is installed"
    assert done.stderr.splitlines()[0].startswith(why)
