"""Real packages: every object that offload made, against the one of the guest's own compiler.

Each package is built with offload, in a real guest, as its users build it, and its own tests run
there with what was built. Then every compilation of the ledger is made once more by the host and
once by the guest's own compiler, in the same tree, and the objects are compared, byte for byte. A
sample of the guest's is kept for the tests (tests/guest/objects.json).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from guestctl import Guest, Pool, image, stage
from guestctl.invocation import PATH
from guestctl.offload import Entry, read_ledger, summarize
from guestctl.offload.names import STUBS
from guestctl.packages import Archive
from guestctl.places import Places
from guestctl.recipe import parse_lock
from guestctl.toolchain import install
from guestctl.toolchain.elf import Elf
from tests.guest import objects
from tests.guest.objects import Made
from tests.guest.shells import settle
from tests.proof import ROOT, Proof

TITLE = "Objects of offload are those of the guest's own compiler"
ARCH = "armv5l"
SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
AT_ONCE = 10  # compilations of a step, after which an interrupted proof goes on
SAMPLED = ("lua", "zlib", "tinyxml2", "tinyxml2-g", "bzip2", "pugixml")  # for the tests


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
    "zlib": Package("zlib", "C, configure of its own", "./configure && make -j$JOBS", "make test"),
    "tinyxml2": Package(
        "tinyxml2", "C++, make", "make -j$JOBS staticlib xmltest", "./xmltest | tail -4"
    ),
    "tinyxml2-g": Package("tinyxml2", "C++, cmake, -g", _CMAKE.format(kind="RelWithDebInfo")),
    "bzip2": Package("bzip2", "C, plain make, -g", "make -j$JOBS bzip2", "make test"),
    "hello": Package(
        "hello", "C, autotools, -g", "./configure -q && make -s -j$JOBS", "make -s check"
    ),
    "pugixml": Package("pugixml", "C++, cmake", _CMAKE.format(kind="Release")),
}  # fmt: skip


def prove(proof: Proof) -> None:
    image.build(ARCH, cache_dir=proof.places.cache)
    install(ARCH, cache_dir=proof.places.cache)
    totals = [0, 0]
    samples = {}
    for name, package in PACKAGES.items():
        made, different = prove_package(proof, name, package)
        totals[0] += len(made)
        totals[1] += different
        if name in SAMPLED:
            samples[name] = list({call.object: call for call in made}.values())
    every, different = totals
    same = every - different
    proof.fact("all objects; equal", f"{every}; {same} ({100 * same / every:.2f} %)")
    assert same >= 0.99 * every
    objects.write(samples, proof.places)


def prove_package(proof: Proof, name: str, package: Package) -> tuple[list[Made], int]:
    """The compilations, with what the guest made of each; how many objects of the host differ."""
    folder = proof.folder / name
    folder.mkdir(exist_ok=True)
    proof.step(f"{name} built", lambda: build(proof, name, package))
    facts = json.loads((folder / "built.json").read_text())
    calls = [Made(**call) for call in facts["calls"]]
    made: list[Made] = []
    differing: list[str] = []
    for first in range(0, len(calls), AT_ONCE):
        some = calls[first : first + AT_ONCE]
        kept = folder / f"compared.{first}.json"
        proof.step(f"{name} {first}", lambda some=some, kept=kept: compare(proof, name, some, kept))  # type: ignore[misc]
        found = json.loads(kept.read_text())
        made += [Made(**call) for call in found["made"]]
        differing += found["differing"]
    equal = len(calls) - len(differing)
    proof.fact(f"{name} ({package.what}): calls on the host, in the guest", facts["where"])
    proof.fact(f"{name}: objects; equal", f"{len(calls)}; {equal}")
    for difference in differing:
        proof.fact(f"{name}: differs", difference)
    if package.test:
        proof.fact(f"{name}: its own tests in the guest, {package.test}", facts["tests"])
    return made, len(differing)


def tarball(places: Places, source: str) -> Path:
    """The locked source of a package."""
    archive = Archive(places.cache / "packages", suites=SUITES)
    for lock in (ROOT / "examples/demo.lock", Path(__file__).with_name("offload.lock")):
        entries = [e for e in parse_lock(lock.read_text(), str(lock)) if e.name == source]
        if entries:
            return next(iter(archive.fetch(entries).values()))
    raise AssertionError(source)


def build(proof: Proof, name: str, package: Package) -> None:
    """Builds and tests a package, and keeps what was compiled."""
    folder = proof.folder / name
    (folder / "trees").mkdir(exist_ok=True)
    with (
        Pool(ARCH, 1, places=proof.places, share=str(folder / "trees")) as pool,
        pool.lease(timeout=120) as guest,
    ):
        with guest.mounted():
            guest.run(["sh", "-c", "rm -rf /work/*"], timeout=300).check()
        stage(tarball(proof.places, package.source), guest.work, into="build")
        assert guest.offload is not None
        env = {"JOBS": str(guest.jobs), "LC_ALL": "C.UTF-8"}
        with guest.mounted():
            run(guest, f"cd /work/build/*/ && {package.build}", env)
            settle(guest)
            entries = read_ledger(guest.offload.ledger.path)
            tests = ""
            if package.test:
                said = run(guest, f"cd /work/build/*/ && {package.test}", env)
                tests = last_word(said)
    calls = [asdict(call_of(entry)) for entry in entries if is_compilation(entry)]
    where = summarize(entries).where
    facts = {"calls": calls, "where": f"{where['offload']}, {where['guest']}", "tests": tests}
    (folder / "built.json").write_text(json.dumps(facts))


def last_word(said: bytes) -> str:
    """The last line of a test's output that is not make's, nor a rule."""
    lines = said.decode(errors="replace").splitlines()
    words = [line for line in lines if not re.match(r"make\b|\W*$", line)]
    return words[-1].strip()[:100] if words else "silent"


def is_compilation(entry: Entry) -> bool:
    return entry.where == "offload" and entry.step == "compile" and "-c" in entry.argv


def call_of(entry: Entry) -> Made:
    argv = entry.argv
    if "-o" in argv:
        output = argv[argv.index("-o") + 1]
    else:
        source = next(word for word in argv if word.endswith((".c", ".cc", ".cpp")))
        output = Path(source).with_suffix(".o").name
    return Made(entry.cwd, shlex.join(argv), str(Path(entry.cwd, output)))


def compare(proof: Proof, name: str, calls: list[Made], kept: Path) -> None:
    """Has the host and the guest's own compiler make some objects anew, and compares them."""
    folder = proof.folder / name
    script = "set -e; rm -rf /work/fast /work/slow; mkdir /work/fast /work/slow\n"
    for number, call in enumerate(calls):
        # Some makefiles take their folders of objects away again.
        folders = f"{shlex.quote(call.cwd)} {shlex.quote(str(Path(call.object).parent))}"
        there = f"mkdir -p {folders}; cd {shlex.quote(call.cwd)}"
        # cmake has found the stub in PATH, and calls it by its path.
        own = call.command.replace(f"{os.fsdecode(STUBS)}/", "")
        for kind, path, command in (("fast", "$PATH", call.command), ("slow", PATH, own)):
            keep = f"mv {shlex.quote(call.object)} /work/{kind}/{number}.o"
            script += f"(PATH={path}; {there}; {command}; {keep})\n"
    with (
        Pool(ARCH, 1, places=proof.places, share=str(folder / "trees")) as pool,
        pool.lease(timeout=120) as guest,
        guest.mounted(),
    ):
        run(guest, script, {"LC_ALL": "C.UTF-8"})
        settle(guest)
        assert guest.offload is not None
        where = [entry.where for entry in read_ledger(guest.offload.ledger.path)]
        assert where == ["offload"] * len(calls), where
    work = folder / "trees/g0"
    made, differing = [], []
    for number, call in enumerate(calls):
        fast, slow = ((work / kind / f"{number}.o").read_bytes() for kind in ("fast", "slow"))
        made.append(asdict(replace(call, sha256=hashlib.sha256(slow).hexdigest())))
        if fast != slow:
            sections = ", ".join(differing_sections(fast, slow))
            differing.append(f"{Path(call.object).name}: {sections}")
    kept.write_text(json.dumps({"made": made, "differing": differing}))


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
