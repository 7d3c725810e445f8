"""A system from source: built by an ordinary user, packed, booted, used, and built once more.

The definitions are images/systems. What is built stays in the user's artifacts, so an interrupted
proof goes on. The second build has a store of its own, elsewhere, one guest, no network but what is
in the caches, and for some of its components no acceleration.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from guestctl.builder.components import Project, load_project
from guestctl.definitions import Device
from tests.console import Console
from tests.proof import ROOT, Proof
from tests.proof.picture import screen
from tests.proof.systems import (
    ARCH,
    DEFINITIONS,
    again,
    artifacts,
    calls,
    entries,
    guestctl,
    loaders,
    seconds,
)
from tests.tutorial import commands_of, section

TITLE = "A bootable ARMv5 system from source, by an ordinary user"
SYSTEM = "small"
AGAIN = os.environ.get("GUESTCTL_SYSTEM_AGAIN", "").split()
LOCAL = ("zlib",)  # the second time by the guest's own compiler
# What is typed as root once the system is up, and what comes of it. No line is as wide as the
# console, which has 80 columns.
SAYING = {
    "lua -v": r"^Lua 5\.4",
    "lua -e 'print(6*7)'": r"^42$",
    "bash -c 'echo $BASH_VERSION'": r"^5\.2",
    "make -v | head -n 1": r"^GNU Make 4",
    "busybox | head -n 1": r"^BusyBox v1\.35",
    "luafmt": r"^Lua 5\.4 says 42\ncaught no$",  # in C++, with its libstdc++
}
ASKING = "dbclient -y -y root@127.0.0.1 lua -v </dev/null 2>/dev/null"
NODE = "%f %u %g %t,%T %n"
OWNERS = {
    "bin/busybox": f"{0o104755:x} 0 0",
    "etc/shadow": f"{0o100600:x} 0 0",
    "home/user": f"{0o040750:x} 1000 1000",
    "mnt/tmp": f"{0o041777:x} 0 0",
    "etc/inittab": f"{0o100644:x} 0 0",
}
LOADER = "/lib/ld-musl-arm.so.1"


def prove(proof: Proof) -> None:
    assert os.getuid() != 0, "this is to be done by an ordinary user"
    project = load_project(DEFINITIONS, ARCH)
    typed(proof)
    built(proof, project)
    assembled(proof, project)
    for kind in ("ext4", "squashfs"):
        booted(proof, kind, project)
    proof.step("pictured", functools.partial(pictured, proof))
    again(proof, project, project.systems[SYSTEM], AGAIN, LOCAL)


def typed(proof: Proof) -> None:
    """What docs/tutorial.md says of a real system, word for word, but for the boot."""
    place = proof.folder / "images"
    if not place.is_symlink():
        place.symlink_to(ROOT / "images")
    lines = [command.line for command in commands_of(section("A real one"))]
    boots = [line for line in lines if " system boot " in line]
    assert boots == [f"guestctl system boot {SYSTEM}.ext4 --arch {ARCH}"]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in lines:
        if line not in boots:
            name = " ".join(
                word for word in line.split()[1:5] if word[0] != "-" and "/" not in word
            )
            proof.step(
                name,
                functools.partial(
                    subprocess.run, ["sh", "-c", line], cwd=proof.folder, check=True, env=env
                ),
            )
    proof.fact("typed, as docs/tutorial.md has it", f"{len(lines) - 1} commands")


# --- built, and put together ----------------------------------------------------------------------


def built(proof: Proof, project: Project) -> None:
    parts = artifacts(proof, project.systems[SYSTEM])
    made = project.systems[SYSTEM]
    chunks = [project.components[name].chunk for name in made]
    from_debian = [each.name for each in chunks if each.tarball.startswith(("debian:", "deb:"))]
    proof.fact("built as", f"an ordinary user, uid {os.getuid()}")
    proof.fact("components of the system", f"{len(made)}: {', '.join(made)}")
    proof.fact("of these from Debian's tarballs", len(from_debian))
    proof.fact("seconds of their builds, one after the other", f"{seconds(parts):.0f}")
    proof.fact("calls of compilers and binutils", calls(parts))


def assembled(proof: Proof, project: Project) -> None:
    tar = proof.folder / f"{SYSTEM}.tar"
    listed = entries(tar)
    for artifact in artifacts(proof, project.systems[SYSTEM]):
        for facts in artifact.manifest["files"]:
            path = facts["path"].removeprefix("./")
            if path in ("", "."):
                continue
            entry = listed[path]
            assert (entry.uid, entry.gid) == (facts["uid"], facts["gid"]), path
            assert facts["type"] == "hard link" or f"{entry.mode:04o}" == facts["mode"], path
    others = sorted(path for path, each in listed.items() if (each.uid, each.gid) != (0, 0))
    setuid = sorted(path for path, each in listed.items() if each.mode & 0o6000)
    nodes = [path for path, each in listed.items() if each.ischr() or each.isblk()]
    proof.fact("entries of the root file system", len(listed))
    proof.fact("paths that two components bring differently", "none")
    proof.fact("owner and mode of each entry", "those of its component's manifest")
    proof.fact("entries of other owners than root", ", ".join(others))
    proof.fact("setuid", ", ".join(setuid))
    proof.fact("device nodes", len(nodes))
    assert setuid == ["bin/busybox"]
    assert "home/user" in others
    asked = loaders(tar)
    assert set(asked) == {LOADER}, asked
    proof.fact("programs with a loader, all of them musl's", len(asked[LOADER]))


# --- booted ---------------------------------------------------------------------------


def booted(proof: Proof, kind: str, project: Project) -> None:
    """What was packed as `kind`, booted and used."""
    kept = proof.folder / f"booted-{kind}.json"
    proof.step(f"booted {kind}", lambda: kept.write_text(json.dumps(used(proof, kind, project))))
    for what, value in json.loads(kept.read_text()).items():
        proof.fact(f"{kind}: {what}", value)


def used(proof: Proof, kind: str, project: Project) -> dict[str, object]:
    """Logs in on the console, looks around, and finds what the definitions demand."""
    out = proof.folder / f"{SYSTEM}.{kind}"
    boot = guestctl("system", "boot", out, "--arch", ARCH)
    nodes = [node for name in project.systems[SYSTEM] for node in _devices(project, name)]
    with Console(boot) as console:
        console.await_(rb"login: ")
        console.type("user\n")
        console.await_(rb"\$ ")
        user = console.run("id -u; touch /root/x; su -c id root", b"$ ")
        console.type("exit\n")
        console.await_(rb"login: ")
        console.type("root\n")
        console.await_(rb"# ")
        said = {line: console.run(line) for line in SAYING}
        asked = console.run(ASKING)
        found = console.run(f"cd /mnt/dev; stat -c '{NODE}' *")
        console.run("cd /")
        owners = console.run(f"stat -c '%f %u %g %n' {' '.join(OWNERS)}")
        console.type("reboot\n")
        status = console.end()
    (proof.folder / f"console-{kind}.txt").write_text(console.text)
    for line, expected in SAYING.items():
        assert re.search(expected, said[line]), (line, said[line])
    assert asked.startswith("Lua 5.4"), asked
    assert found.splitlines() == sorted(map(demanded, nodes), key=_last_word), found
    assert owners.splitlines() == [f"{OWNERS[path]} {path}" for path in OWNERS], owners
    who, denied, become = user.splitlines()
    assert who == "1000" and become.startswith("uid=0(root) "), user
    assert "Permission denied" in denied, user
    assert status == 0
    return {
        "size": f"{out.stat().st_size >> 20} MiB",
        **{
            f"`{line}`".replace("|", "\\|"): "; ".join(text.splitlines())
            for line, text in said.items()
        },
        f"its daemon, asked by `{ASKING.partition(' <')[0]}`": asked,
        "device nodes in it that are as the definitions demand": len(nodes),
        "what uid 1000 becomes by the setuid program": become,
    }


def pictured(proof: Proof) -> None:
    """docs/console.svg: a log-in on the console, as a person has it; docs/build.svg: the build."""
    page = (proof.folder / f"{SYSTEM}.html").read_text()
    plot = re.search(r"<svg .*?</svg>", page, re.DOTALL)
    assert plot is not None
    (ROOT / "docs" / "build.svg").write_text(plot[0] + "\n")
    out = proof.folder / f"{SYSTEM}.ext4"
    boot = guestctl("system", "boot", out, "--arch", ARCH)
    with Console(boot) as console:
        console.await_(rb"login: ")
        for line in ("root", "lua -v", "ls -l /bin/busybox /mnt/dev/console", ASKING):
            console.type(f"{line}\n")
            console.await_(rb"\n# ")
        lines = console.text.rstrip().splitlines()
        console.type("reboot\n")
        console.end()
    begin = next((n for n, line in enumerate(lines) if "init process" in line), len(lines) - 34)
    (ROOT / "docs" / "console.svg").write_text(screen(lines[max(begin - 6, 0) :][:40]))


def _devices(project: Project, name: str) -> tuple[Device, ...]:
    return project.components[name].chunk.devices


def demanded(node: Device) -> str:
    """What stat says of a device node of the definitions."""
    mode = {"c": 0o020000, "b": 0o060000}[node.type] | int(node.permissions, 8)
    name = node.filename.removeprefix("/dev/")
    return f"{mode:x} {node.uid} {node.gid} {node.major:x},{node.minor:x} {name}"


def _last_word(line: str) -> str:
    return line.rsplit(maxsplit=1)[-1]
