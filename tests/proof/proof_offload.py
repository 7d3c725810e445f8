"""Real packages: every object that offload made, against the one of the guest's own compiler.

Each package is built with offload, in a real guest, as its users build it. Then the guest's own
compiler runs every compilation of the ledger again, in the same tree, and the objects are compared,
byte for byte. The packages' own tests run in the guest with what offload has built.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guestctl import Guest, Pool, image, stage
from guestctl.invocation import PATH
from guestctl.offload import Entry, read_ledger, summarize
from guestctl.packages import Archive
from guestctl.recipe import parse_lock
from guestctl.toolchain import install
from guestctl.toolchain.elf import Elf
from tests.guest.shells import settle
from tests.proof import ROOT, Proof

TITLE = "Objects of offload are those of the guest's own compiler"
ARCH = "armv5l"
SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
AT_ONCE = 10  # compilations of a step, after which an interrupted proof goes on


@dataclass(frozen=True)
class Package:
    """`build` and `test` are scripts in its folder; `test` names what its own tests are."""

    source: str
    what: str
    build: str
    test: str = ""


_CMAKE = "mkdir out; cd out; cmake -DCMAKE_BUILD_TYPE={kind} .. && make -j$JOBS"
PACKAGES = {
    "lua": Package("lua5.4", "C, plain make", "make -j$JOBS linux", "make test"),
    "lua-g": Package("lua5.4", "C, plain make, -g", "make -j$JOBS linux MYCFLAGS=-g", "make test"),
    "zlib": Package("zlib", "C, configure of its own", "./configure && make -j$JOBS", "make test"),
    "tinyxml2": Package(
        "tinyxml2", "C++, make", "make -j$JOBS staticlib xmltest", "./xmltest | tail -4"
    ),
    "tinyxml2-g": Package("tinyxml2", "C++, cmake, -g", _CMAKE.format(kind="RelWithDebInfo")),
    "bzip2": Package("bzip2", "C, plain make, -g", "make -j$JOBS bzip2", "make test"),
    "libyaml": Package(
        "libyaml", "C, autotools, -g", "./configure -q && make -s -j$JOBS",
        "make -s check",
    ),
    "pugixml": Package("pugixml", "C++, cmake", _CMAKE.format(kind="Release")),
    "hello": Package(
        "hello", "C, autotools, -g", "./configure -q && make -s -j$JOBS", "make -s check"
    ),
}  # fmt: skip


def prove(proof: Proof) -> None:
    image.build(ARCH, cache_dir=proof.places.cache)
    install(ARCH, cache_dir=proof.places.cache)
    totals = [0, 0]
    for name, package in PACKAGES.items():
        for index, number in enumerate(prove_package(proof, name, package)):
            totals[index] += number
    same, all_ = totals
    proof.fact("all objects; equal", f"{all_}; {same} ({100 * same / all_:.2f} %)")
    assert same >= 0.99 * all_


def prove_package(proof: Proof, name: str, package: Package) -> tuple[int, int]:
    """How many objects are equal, and how many there are."""
    folder = proof.folder / name
    folder.mkdir(exist_ok=True)
    proof.step(f"{name} built", lambda: build(proof, name, package))
    facts = json.loads((folder / "built.json").read_text())
    calls: list[list[str]] = facts["calls"]
    differing: list[str] = []
    for first in range(0, len(calls), AT_ONCE):
        some = dict(enumerate(calls[first : first + AT_ONCE], first))
        proof.step(f"{name} {first}", lambda some=some: compare(proof, name, some))  # type: ignore[misc]
        differing += json.loads((folder / f"differ.{first}.json").read_text())
    equal = len(calls) - len(differing)
    proof.fact(f"{name} ({package.what}): calls on the host, in the guest", facts["where"])
    proof.fact(f"{name}: objects; equal", f"{len(calls)}; {equal}")
    for difference in differing:
        proof.fact(f"{name}: differs", difference)
    if package.test:
        proof.fact(f"{name}: its own tests in the guest, {package.test}", facts["tests"])
    return equal, len(calls)


def tarball(proof: Proof, source: str) -> Path:
    archive = Archive(proof.places.cache / "packages", suites=SUITES)
    for lock in (ROOT / "examples/demo.lock", Path(__file__).with_name("offload.lock")):
        entries = [e for e in parse_lock(lock.read_text(), str(lock)) if e.name == source]
        if entries:
            return next(iter(archive.fetch(entries).values()))
    raise AssertionError(source)


def build(proof: Proof, name: str, package: Package) -> None:
    """Builds and tests a package, and keeps each object aside."""
    folder = proof.folder / name
    (folder / "trees").mkdir(exist_ok=True)
    with (
        Pool(ARCH, 1, places=proof.places, share=folder / "trees") as pool,
        pool.lease(timeout=120) as guest,
    ):
        with guest.mounted():
            guest.run(["sh", "-c", "rm -rf /work/*"], timeout=300).check()
        stage(tarball(proof, package.source), guest.work, into="build")
        assert guest.offload is not None
        env = {"JOBS": str(guest.jobs), "LC_ALL": "C.UTF-8"}
        with guest.mounted():
            run(guest, f"cd /work/build/*/ && {package.build}", env)
            settle(guest)
            entries = read_ledger(guest.offload.ledger.path)
            tests = ""
            if package.test:
                said = run(guest, f"cd /work/build/*/ && {package.test}", env)
                tests = said.decode(errors="replace").strip().splitlines()[-1][:100]
            calls = [call_of(entry) for entry in entries if is_compilation(entry)]
            script = "mkdir /work/fast\n" + "".join(
                f"cp {shlex.quote(output)} /work/fast/{number}.o\n"
                for number, (_, _, output) in enumerate(calls)
            )
            run(guest, script, env)
    where = summarize(entries).where
    facts = {"calls": calls, "where": f"{where['offload']}, {where['guest']}", "tests": tests}
    (folder / "built.json").write_text(json.dumps(facts))


def is_compilation(entry: Entry) -> bool:
    return entry.where == "offload" and entry.step == "compile" and "-c" in entry.argv


def call_of(entry: Entry) -> list[str]:
    """The working directory, the command and the object of a compilation."""
    argv = entry.argv
    if "-o" in argv:
        output = argv[argv.index("-o") + 1]
    else:
        source = next(word for word in argv if word.endswith((".c", ".cc", ".cpp")))
        output = Path(source).with_suffix(".o").name
    return [entry.cwd, shlex.join(argv), str(Path(entry.cwd, output))]


def compare(proof: Proof, name: str, calls: dict[int, Sequence[str]]) -> None:
    """Has the guest's own compiler make the objects of some calls anew, and compares them."""
    folder = proof.folder / name
    script = f"set -e; mkdir -p /work/slow; PATH={PATH}\n" + "".join(
        f"cd {shlex.quote(cwd)}; {command}; cp {shlex.quote(output)} /work/slow/{number}.o\n"
        for number, (cwd, command, output) in calls.items()
    )
    with (
        Pool(ARCH, 1, places=proof.places, share=folder / "trees", offload="off") as pool,
        pool.lease(timeout=120) as guest,
        guest.mounted(),
    ):
        run(guest, script, {"LC_ALL": "C.UTF-8"})
    work = folder / "trees/g0"
    found = []
    for number, (_, command, _) in calls.items():
        fast, slow = ((work / kind / f"{number}.o").read_bytes() for kind in ("fast", "slow"))
        if fast != slow:
            found.append(f"{shlex.split(command)[-1]}: {', '.join(differing_sections(fast, slow))}")
    (folder / f"differ.{min(calls)}.json").write_text(json.dumps(found))


def differing_sections(one: bytes, other: bytes) -> list[str]:
    first, second = Elf(one), Elf(other)
    names = [section.name for section in first.sections]
    if names != [section.name for section in second.sections]:
        return ["its sections"]
    pairs = zip(first.sections, second.sections, strict=True)
    return [a.name.decode() for a, b in pairs if first.content(a) != second.content(b)]


def run(guest: Guest, script: str, env: dict[str, str]) -> bytes:
    result = guest.run(["bash", "-ec", script], timeout=3000, env=env)
    text = (result.stdout + result.stderr).decode(errors="replace")
    assert result.status == 0, text[-3000:]
    return result.stdout
