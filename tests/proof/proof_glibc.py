"""glibc from source, built natively in the sysroot of musl, and a system that holds both.

The definitions are images/systems, of which `transition` has what `small` has, but for C++, and
glibc with programs of its own beside musl's. Parts of it are built a second time, elsewhere.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from collections.abc import Sequence

from guestctl.builder.components import Project, load_project
from tests.console import Console
from tests.proof import ROOT, Proof
from tests.proof.systems import (
    ARCH,
    DEFINITIONS,
    again,
    artifacts,
    calls,
    guestctl,
    loaders,
    seconds,
)

TITLE = "glibc, built in the musl-based sysroot, and both in one system"
SYSTEM = "transition"
MADE = ("gawk", "bison", "glibc", "lua-glibc", "which-libc")
AGAIN = os.environ.get("GUESTCTL_GLIBC_AGAIN", " ".join(MADE)).split()
MUSL, GLIBC = "/lib/ld-musl-arm.so.1", "/lib/ld-linux.so.3"
OF_GLIBC = "/usr/bin/arm-linux-gnueabi-lua"
# What is typed as root once the system is up, and what comes of it.
SAYING = {
    "uname -m": r"^armv5",
    f"{MUSL} 2>&1 | head -n 2": r"^musl libc \(arm\)\nVersion 1\.2",
    "lua -v": r"^Lua 5\.4",
    "ldd /usr/bin/lua": MUSL,
    f"{GLIBC} --version | head -n 1": r"stable release version 2\.36",
    "getconf GNU_LIBC_VERSION": r"^glibc 2\.36$",
    f"{OF_GLIBC} -e 'print(_VERSION, 6*7)'": r"^Lua 5\.4\t?\s*42$",
    f"arm-linux-gnueabi-ldd {OF_GLIBC}": r"libc\.so\.6 => /lib/arm-linux-gnueabi/libc\.so\.6",
    "which-libc": r"^glibc 2\.36\nuid 1000 is user\nthe root of 1764 is 42\nloaded /lib/arm",
}


def prove(proof: Proof) -> None:
    assert os.getuid() != 0, "this is to be done by an ordinary user"
    project = load_project(DEFINITIONS, ARCH)
    tar, disk = proof.folder / f"{SYSTEM}.tar", proof.folder / f"{SYSTEM}.ext4"
    for name in ("glibc", SYSTEM):
        ordered(proof, f"{name} built", "build", DEFINITIONS, name, "--arch", ARCH, "-n", 2)
    ordered(proof, "assembled", "system", "assemble", DEFINITIONS, SYSTEM, tar, "--arch", ARCH,
            "--strict")  # fmt: skip
    ordered(proof, "packed", "system", "pack", tar, disk, "--format", "ext4")
    built(proof, project)
    asked = loaders(tar)
    assert set(asked) == {MUSL, GLIBC}, asked
    assert OF_GLIBC.strip("/") in asked[GLIBC], asked
    assert "usr/bin/lua" in asked[MUSL], asked
    proof.fact("paths that two components bring differently", "none")
    proof.fact(f"programs that ask for `{MUSL}`", len(asked[MUSL]))
    proof.fact(f"programs that ask for `{GLIBC}`", len(asked[GLIBC]))
    kept = proof.folder / "booted.json"
    boot = guestctl("system", "boot", disk, "--arch", ARCH)
    proof.step("booted", lambda: kept.write_text(json.dumps(used(boot))))
    for line, text in json.loads(kept.read_text()).items():
        proof.fact(f"`{line}`".replace("|", "\\|"), "; ".join(map(str.strip, text.splitlines())))
    again(proof, project, project.systems[SYSTEM], AGAIN)


def ordered(proof: Proof, name: str, *words: object) -> None:
    """A step that is one command of this checkout's program."""
    work = functools.partial(subprocess.run, guestctl(*words), check=True, cwd=ROOT)
    proof.step(name, work)


def built(proof: Proof, project: Project) -> None:
    members = project.systems[SYSTEM]
    proof.fact("built as", f"an ordinary user, uid {os.getuid()}")
    proof.fact("components of the system", f"{len(members)}: {', '.join(members)}")
    for artifact in artifacts(proof, MADE):
        proof.fact(f"{artifact.name}: seconds of its build", f"{seconds([artifact]):.0f}")
        proof.fact(f"{artifact.name}: calls of compilers and binutils", calls([artifact]))
        for reason, count in sorted(artifact.manifest["local"].items()):
            proof.fact(f"{artifact.name}: in the guest, {count} times", reason)


def used(boot: Sequence[str]) -> dict[str, str]:
    """Logs in on the console, and asks for each C library."""
    with Console(boot) as console:
        console.await_(rb"login: ")
        console.type("root\n")
        console.await_(rb"# ")
        said = {line: console.run(line) for line in SAYING}
        console.type("reboot\n")
        assert console.end() == 0
    for line, expected in SAYING.items():
        assert re.search(expected, said[line]), (line, said[line])
    return said
