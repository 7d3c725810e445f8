"""Offload with real guests: the host compiles, and nobody in the guest can tell.

A table of calls is run with the stubs first in PATH and again without: files, links, modes, output
and status must be the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from guestctl import Guest, Pool, image, stage
from guestctl.offload import Entry, read_ledger
from guestctl.packages import Archive
from guestctl.places import Places
from guestctl.recipe import parse_lock
from guestctl.rundir import flocked
from guestctl.toolchain import install
from tests.fairness import until

from .calls import CALLS, digest_script, outcomes, sources
from .conftest import ARCH
from .shells import reasons, settle, sh

SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
LOCK = Path(__file__).parent.parent.parent / "examples" / "demo.lock"
NATIVE = "PATH=/usr/lib/guestctl/static:/usr/local/bin:/usr/bin:/bin"
# Seconds that the guest's own tools may take, for what they have not done before.
NATIVE_MOST = 1500


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
    assert len(local) == 4
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
