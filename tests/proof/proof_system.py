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
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

from guestctl.builder.components import Project, load_project
from guestctl.builder.graph import closure, in_order
from guestctl.builder.store import Artifact, Store
from guestctl.definitions import Device
from tests.console import Console
from tests.proof import ROOT, Proof
from tests.proof.picture import screen
from tests.tutorial import commands_of, section

TITLE = "A bootable ARMv5 system from source, by an ordinary user"
ARCH = "armv5l"
DEFINITIONS = ROOT / "images" / "systems"
SYSTEM = "small"
AGAIN = os.environ.get("GUESTCTL_SYSTEM_AGAIN", "").split()
LOCAL = ("zlib",)  # the second time by the guest's own compiler
STRANGER = "4321"  # the uid, and gid, that all programs of the second build see
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
    again(proof, project)


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
    manifests = artifacts(proof, project.systems[SYSTEM])
    made = project.systems[SYSTEM]
    chunks = [project.components[name].chunk for name in made]
    calls = {
        where: sum(each.manifest["ledger"].get(where, 0) for each in manifests)
        for where in ("offload", "distcc", "guest")
    }
    seconds = sum(sum(each.manifest["seconds"].values()) for each in manifests)
    from_debian = [each.name for each in chunks if each.tarball.startswith(("debian:", "deb:"))]
    proof.fact("built as", f"an ordinary user, uid {os.getuid()}")
    proof.fact("components of the system", f"{len(made)}: {', '.join(made)}")
    proof.fact("of these from Debian's tarballs", len(from_debian))
    proof.fact("seconds of their builds, one after the other", f"{seconds:.0f}")
    proof.fact(
        "calls of compilers and binutils",
        ", ".join(f"{n} by {where}" for where, n in calls.items()),
    )


def artifacts(proof: Proof, names: Iterable[str], data: Path | None = None) -> list[Artifact]:
    """The newest artifact of each name."""
    store = Store(data / "guestctl" if data else proof.places.data)
    return [store.find(name) for name in names]


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
    proof.fact("programs with a loader, all of them musl's", loaders(tar))


def entries(tar: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(tar) as archive:
        return {entry.name.removeprefix("./"): entry for entry in archive}


def loaders(tar: Path) -> int:
    """How many programs ask for a loader; each must ask for musl's."""
    found = 0
    with tarfile.open(tar) as archive:
        for entry in archive:
            content = archive.extractfile(entry) if entry.isreg() else None
            if content is None or content.read(4) != b"\x7fELF":
                continue
            content.seek(0)
            asked = re.search(rb"/lib/ld-[a-z.0-9-]+\0", content.read(4096))
            if asked:
                assert asked[0] == LOADER.encode() + b"\0", (entry.name, asked[0])
                found += 1
    return found


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
    boot = [sys.executable, "-m", "guestctl", "system", "boot", str(out), "--arch", ARCH]
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
    out = str(proof.folder / f"{SYSTEM}.ext4")
    boot = [sys.executable, "-m", "guestctl", "system", "boot", out, "--arch", ARCH]
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


# --- built again ----------------------------------------------------------------------------------


def again(proof: Proof, project: Project) -> None:
    """All components a second time, or AGAIN and what these need: from nothing, elsewhere,
    by somebody else, with another number of guests. What is not equal is listed, file by file.
    """
    data, cache = proof.folder / "again", proof.folder / "cache"
    needs = {name: each.needs for name, each in project.components.items()}
    members = project.systems[SYSTEM]
    wanted = closure(needs, AGAIN or members)
    order = [name for name in in_order(needs) if name in wanted]
    bundle = proof.folder / f"{ARCH}.bundle"
    env = {**os.environ, "XDG_DATA_HOME": str(data), "XDG_CACHE_HOME": str(cache)}
    alone = ["bwrap", "--dev-bind", "/", "/", "--unshare-net", "--unshare-user"]
    alone += ["--uid", STRANGER, "--gid", STRANGER, sys.executable, "-m", "guestctl"]

    def copied() -> None:
        """The source cache, and the packages that the host's compilers are made from."""
        for name in ("sources", "packages"):
            shutil.rmtree(cache / "guestctl" / name, ignore_errors=True)
            shutil.copytree(
                proof.places.cache / name, cache / "guestctl" / name, copy_function=os.link,
                symlinks=True, dirs_exist_ok=True,
            )  # fmt: skip

    def offline(*words: object) -> None:
        subprocess.run([*alone, *map(str, words)], check=True, env=env, cwd=ROOT)

    def nothing() -> None:
        for folder in (data, cache):
            shutil.rmtree(folder, ignore_errors=True)

    proof.step("what an earlier run built again, removed", nothing)
    export = [sys.executable, "-m", "guestctl", "image", "export", ARCH, str(bundle)]
    proof.step("image exported", functools.partial(subprocess.run, export, check=True, cwd=ROOT))
    proof.step("caches copied", copied)
    proof.step("image imported", functools.partial(offline, "image", "import", bundle))
    proof.step("toolchain installed", functools.partial(offline, "toolchain", "install", ARCH))

    def build(name: str) -> None:
        offload = "off" if name in LOCAL else "auto"
        words = ("build", DEFINITIONS, name, "--arch", ARCH, "-n", 1, "--offline")
        offline(*words, "--offload", offload)

    for name in order:
        proof.step(f"{name} built again", functools.partial(build, name))
    equal: list[str] = []
    differing: list[str] = []
    for first, second in zip(artifacts(proof, order), artifacts(proof, order, data), strict=True):
        assert first.key == second.key, first.name
        same = first.tar.read_bytes() == second.tar.read_bytes()
        (equal if same else differing).append(first.name)
        if not same:
            proof.fact(f"{first.name}: files that differ", ", ".join(different(first, second)))
        calls = second.manifest["ledger"]
        assert first.name not in LOCAL or not calls.get("offload"), calls
    proof.fact(
        f"built again elsewhere, as uid {STRANGER}, one guest, no network: bit-identical",
        ", ".join(equal),
    )
    proof.fact("of these without acceleration", ", ".join(n for n in LOCAL if n in equal))
    proof.fact("built again, with other bytes", ", ".join(differing) or "none")
    left = [name for name in members if name not in order]
    proof.fact("not built again", ", ".join(left) or "none")


def different(first: Artifact, second: Artifact) -> list[str]:
    """The paths that are not the same in both."""
    one, other = (
        {facts["path"]: facts for facts in each.manifest["files"]} for each in (first, second)
    )
    return sorted(path for path in {*one, *other} if one.get(path) != other.get(path))
