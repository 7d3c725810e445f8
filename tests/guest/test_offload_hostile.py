"""What a hostile guest might ask of the host's tools: none of it shows or runs a thing of the host.

All that can be asked is asked once, and each answer judged by itself.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from guestctl import Pool

# A file of the host that holds a word which no guest has.
SECRET = Path(__file__).resolve()
WORD = b"A word that is nowhere but here"
SETUP = """
    echo 'int main(void) { return 0; }' >x.c; cp /bin/true x.so
    printf '#!/bin/sh\\necho "EV"IL on $(hostname)\\n' >evil; chmod +x evil
    for name in cc1 as ld collect2; do cp evil $name; done
"""
ATTACKS = {
    "include": f"echo '#include \"{SECRET}\"' | gcc -E -",
    "include-passwd": "gcc -E -include /etc/passwd x.c",
    "include-option": f"gcc -E -include {SECRET} x.c",
    "include-upwards": f"echo '#include \"../../../../../../../../../..{SECRET}\"' | gcc -E -",
    "incbin": f"echo '.incbin \"{SECRET}\"' >i.s; gcc -c i.s && cat i.o",
    "include-of-as": f"echo '.include \"{SECRET}\"' >i.s; gcc -c i.s",
    "response-file": f"gcc -E @{SECRET}",
    "linker-script": f"echo 'INPUT({SECRET})' >l.ld; gcc x.c -T l.ld",
    "linker-include": f"echo 'INCLUDE {SECRET}' >l.ld; gcc x.c -T l.ld",
    "linker-binary": f"ld -r -b binary {SECRET} -o b.o; cat b.o",
    "thin-archive": f"ar rcT t.a {SECRET}; gcc x.c t.a; cat t.a",
    "link": f"ln -sf {SECRET} link.c; gcc -E link.c",
    "plugin": "gcc -fplugin=./x.so x.c",
    "linker-plugin": "gcc -Wl,-plugin,./x.so x.c",
    "specs": "printf '*cc1:\\n+ -B./\\n' >s; gcc -specs=./s -c x.c",
    "B": "gcc -B. -c x.c -o b.o; gcc -B./ -c x.c -o b.o; gcc -B $PWD/ x.c",
    "wrapper": "gcc -wrapper ./evil x.c",
    "CPATH": f"CPATH={SECRET.parent} gcc -E -include {SECRET.name} x.c",
    "COMPILER_PATH": "COMPILER_PATH=$PWD gcc -c x.c",
    "GCC_EXEC_PREFIX": "GCC_EXEC_PREFIX=$PWD/ gcc -c x.c",
    "LD_PRELOAD": "LD_PRELOAD=$PWD/x.so gcc -c x.c",
    "DEPENDENCIES_OUTPUT": f"DEPENDENCIES_OUTPUT={SECRET}.deps gcc -c x.c",
    "SUNPRO_DEPENDENCIES": f"SUNPRO_DEPENDENCIES={SECRET}.deps gcc -c x.c",
    "output": f"gcc -c x.c -o {SECRET}.o; gcc -c x.c -o ../../../../../../../../..{SECRET}.o",
    "output-proc": "gcc -c x.c -o /proc/self/x; gcc -c x.c -o /proc/1/root/x",
    "output-toolchain": "gcc -c x.c -o /.tc/usr/bin/gcc; ls -d /.tc",
    "dependencies": f"gcc -c x.c -MD -MF {SECRET}.d",
    "stdin": "gcc -E -xc /dev/stdin <x.c; gcc -E -xc /proc/self/maps",
}  # fmt: skip


# Links are another matter, see tests/test_view_isolation.py.
on_one_model = pytest.mark.parametrize("offload_pool", ["mapped-file"], indirect=True)


@pytest.fixture(scope="module")
def answers(offload_pool: Pool) -> dict[str, bytes]:
    """What came of each attack: all output, and all files that it left."""
    script = "cd /work; rm -rf *;"
    for name, attack in ATTACKS.items():
        script += (
            f"mkdir {name}; cd {name}; {SETUP}\n( {attack} ) >../out 2>&1; echo =ATTACK={name};"
        )
        script += "cat ../out; find . -newer x.so -type f -exec cat {} +; cd ..\n"
    with offload_pool.lease(timeout=60) as guest, guest.mounted():
        output = guest.run(["bash", "-c", script], timeout=280).check().stdout
    found = {}
    for part in output.split(b"=ATTACK=")[1:]:
        name, _, text = part.partition(b"\n")
        found[name.decode()] = text
    return found


@on_one_model
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_guest_gets_nothing_of_the_host(answers: dict[str, bytes], attack: str) -> None:
    answer = answers[attack]
    assert WORD not in answer
    # What is run by such options is run in the guest, whose name is g0.
    assert all(b"on g0" in line for line in answer.splitlines() if b"EVIL on" in line)
    # And nothing was left beside the host's file.
    beside = {path.name for path in SECRET.parent.glob(f"{SECRET.name}?*")}
    assert beside == set()


@on_one_model
def test_the_passwords_file_is_the_guests_own(answers: dict[str, bytes]) -> None:
    answer = answers["include-passwd"]
    assert b"nobody:" in answer
    assert pwd.getpwuid(os.getuid()).pw_name.encode() not in answer
