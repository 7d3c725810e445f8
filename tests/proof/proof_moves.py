"""Built source trees that are collected and staged elsewhere are still up to date for make."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from guestctl import collect, stage
from guestctl.packages import Archive
from guestctl.recipe import Locked, parse_lock
from guestctl.translate import check
from tests.proof import ROOT, Proof

TITLE = "Built trees move: make compiles nothing again"
SUITES = ("bookworm", "bookworm-updates", "bookworm-security")


def fetched(proof: Proof, lock: Path, name: str) -> Path:
    archive = Archive(proof.places.cache / "packages", suites=SUITES)
    wanted: list[Locked] = [e for e in parse_lock(lock.read_text(), str(lock)) if e.name == name]
    return next(iter(archive.fetch(wanted).values()))


def run(*argv: object, cwd: Path, log: Path) -> None:
    with open(log, "ab") as out:
        subprocess.run([*map(str, argv)], cwd=cwd, stdout=out, stderr=out, check=True)


def moved(proof: Proof, built: Path, name: str) -> None:
    """The tree through the translator twice, and back to the path where it was built."""
    kept = proof.folder / f"{name}.built"

    def work() -> None:
        for part in ("tree1", "tree2"):
            shutil.rmtree(proof.folder / part, ignore_errors=True)
        for number, source in ((1, built), (2, proof.folder / "1.tar")):
            tree = proof.folder / f"tree{number}"
            stage(source, tree, into="build")
            assert not check(tree)
            collect(tree, proof.folder / f"{number}.tar", path="build")
        first, second = ((proof.folder / f"{n}.tar").read_bytes() for n in (1, 2))
        assert first == second, "the second trip changed something"
        built.rename(kept)
        built.mkdir()
        subprocess.run(["tar", "-xpf", proof.folder / "2.tar", "-C", built], check=True)
        for path in (kept, proof.folder / "tree1", proof.folder / "tree2"):
            shutil.rmtree(path)

    proof.step(f"{name} moved", work)


def count_entries(archive: Path) -> int:
    with tarfile.open(archive) as tar:
        return sum(1 for _ in tar)


def prove(proof: Proof) -> None:
    lua(proof)
    kernel(proof)


def lua(proof: Proof) -> None:
    built = proof.folder / "lua"
    make = ["make", "-C", "src", "linux", "SYSLIBS=-Wl,-E -ldl", "SYSCFLAGS=-DLUA_USE_LINUX"]
    log = proof.folder / "lua.log"

    def build() -> None:
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir()
        tarball = fetched(proof, ROOT / "examples" / "demo.lock", "lua5.4")
        subprocess.run(["tar", "-xf", tarball, "-C", built, "--strip-components=1"], check=True)
        log.unlink(missing_ok=True)
        run(*make, cwd=built, log=log)

    proof.step("lua built", build)
    compiled = log.read_text().count("-c -o ")
    moved(proof, built, "lua")
    again = proof.folder / "lua-again.log"
    again.unlink(missing_ok=True)
    run(*make, cwd=built, log=again)
    proof.fact("lua: files compiled at first", compiled)
    proof.fact("lua: entries of the collected tree", count_entries(proof.folder / "2.tar"))
    left = again.read_text().count("-c -o ")
    proof.fact("lua: files compiled after it moved", left)
    assert not left
    (built / "src" / "lua.h").touch()
    run(*make, cwd=built, log=again)
    touched = again.read_text().count("-c -o ")
    proof.fact("lua: files compiled after a header was touched", touched)
    assert compiled > 30 and touched > 20


def kernel(proof: Proof) -> None:
    built = proof.folder / "linux"
    log = proof.folder / "linux.log"
    make = ["make", f"-j{os.cpu_count()}", "KBUILD_BUILD_TIMESTAMP=@0", "KBUILD_BUILD_VERSION=1"]

    def unpack() -> None:
        shutil.rmtree(built, ignore_errors=True)
        shutil.rmtree(proof.folder / "deb", ignore_errors=True)
        package = fetched(proof, ROOT / "images" / "x86_64.lock", "linux-source-6.1")
        subprocess.run(["dpkg-deb", "-x", package, proof.folder / "deb"], check=True)
        (tarball,) = (proof.folder / "deb" / "usr" / "src").glob("linux-source-*.tar.xz")
        built.mkdir()
        subprocess.run(["tar", "-xf", tarball, "-C", built, "--strip-components=1"], check=True)
        shutil.rmtree(proof.folder / "deb")

    def build() -> None:
        log.unlink(missing_ok=True)
        run("make", "tinyconfig", cwd=built, log=log)
        run(*make, "vmlinux", cwd=built, log=log)

    proof.step("kernel unpacked", unpack)
    proof.step("kernel built", build)
    kind = re.compile(r"^  (?:CC|AS|LD|AR|HOSTCC) .*", re.MULTILINE)
    compiled = len(kind.findall(log.read_text()))
    moved(proof, built, "kernel")
    again = proof.folder / "linux-again.log"
    again.unlink(missing_ok=True)
    run(*make, "vmlinux", cwd=built, log=again)
    left = kind.findall(again.read_text())
    proof.fact("kernel: compiled, assembled and linked at first", compiled)
    proof.fact("kernel: entries of the collected tree", count_entries(proof.folder / "2.tar"))
    proof.fact("kernel: compiled, assembled and linked after it moved", len(left))
    assert compiled > 300 and not left, left
    (built / "include/linux/kernel.h").touch()
    run(*make, "vmlinux", cwd=built, log=again)
    touched = len(kind.findall(again.read_text()))
    proof.fact("kernel: the same after a header was touched", touched)
    assert touched > 100
