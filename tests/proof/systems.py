"""What the proofs of systems from source have in common: what was built, what it came to, and the
second build, elsewhere.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from guestctl.builder.components import Project
from guestctl.builder.graph import closure, in_order
from guestctl.builder.store import Artifact, Store
from tests.proof import ROOT, Proof

__all__ = ["ARCH", "DEFINITIONS", "STRANGER", "again", "artifacts", "calls", "different", "entries",
           "guestctl", "loaders", "seconds"]  # fmt: skip

ARCH = "armv5l"
DEFINITIONS = ROOT / "images" / "systems"
STRANGER = "4321"  # the uid, and gid, that all programs of the second build see


def guestctl(*words: object) -> list[str]:
    """The command line of this checkout's program."""
    return [sys.executable, "-m", "guestctl", *map(str, words)]


def artifacts(proof: Proof, names: Iterable[str], data: Path | None = None) -> list[Artifact]:
    """The newest artifact of each name."""
    store = Store(data / "guestctl" if data else proof.places.data)
    return [store.find(name) for name in names]


def calls(made: Iterable[Artifact]) -> str:
    """How many calls of compilers and binutils ran where."""
    ledgers = [artifact.manifest["ledger"] for artifact in made]
    where = ("offload", "distcc", "guest")
    return ", ".join(f"{sum(each.get(at, 0) for each in ledgers)} by {at}" for at in where)


def seconds(made: Iterable[Artifact]) -> float:
    """Those of all steps of their builds."""
    return float(sum(sum(each.manifest["seconds"].values()) for each in made))


def entries(tar: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(tar) as archive:
        return {entry.name.removeprefix("./"): entry for entry in archive}


def loaders(tar: Path) -> dict[str, list[str]]:
    """The programs that ask for each loader."""
    found: dict[str, list[str]] = {}
    with tarfile.open(tar) as archive:
        for entry in archive:
            content = archive.extractfile(entry) if entry.isreg() else None
            if content is None or content.read(4) != b"\x7fELF":
                continue
            content.seek(0)
            asked = re.search(rb"/lib/ld-[a-z.0-9-]+(?=\0)", content.read(4096))
            if asked:
                found.setdefault(asked[0].decode(), []).append(entry.name.removeprefix("./"))
    return found


def different(first: Artifact, second: Artifact) -> list[str]:
    """The paths that are not the same in both."""
    one, other = (
        {facts["path"]: facts for facts in each.manifest["files"]} for each in (first, second)
    )
    return sorted(path for path in {*one, *other} if one.get(path) != other.get(path))


def again(
    proof: Proof,
    project: Project,
    members: Sequence[str],
    names: Sequence[str],
    local: Sequence[str] = (),
) -> None:
    """Builds all members of a system a second time, or `names` and what these need: from nothing,
    elsewhere, by somebody else, with another number of guests; those of `local` by the guest's own
    compiler. What is not equal is listed, file by file.
    """
    data, cache = proof.folder / "again", proof.folder / "cache"
    needs = {name: each.needs for name, each in project.components.items()}
    wanted = closure(needs, names or members)
    order = [name for name in in_order(needs) if name in wanted]
    bundle = proof.folder / f"{ARCH}.bundle"
    env = {**os.environ, "XDG_DATA_HOME": str(data), "XDG_CACHE_HOME": str(cache)}
    alone = ["bwrap", "--dev-bind", "/", "/", "--unshare-net", "--unshare-user"]
    alone += ["--uid", STRANGER, "--gid", STRANGER]

    def copied() -> None:
        """The source cache, and the packages that the host's compilers are made from."""
        for name in ("sources", "packages"):
            shutil.rmtree(cache / "guestctl" / name, ignore_errors=True)
            shutil.copytree(
                proof.places.cache / name, cache / "guestctl" / name, copy_function=os.link,
                symlinks=True, dirs_exist_ok=True,
            )  # fmt: skip

    def offline(*words: object) -> None:
        # The default is named by the uid, and may be that of another who was this stranger once.
        with tempfile.TemporaryDirectory(prefix="guestctl-") as runtime:
            subprocess.run(
                [*alone, *guestctl(*words)], check=True, env={**env, "XDG_RUNTIME_DIR": runtime},
                cwd=ROOT,
            )  # fmt: skip

    def nothing() -> None:
        for folder in (data, cache):
            shutil.rmtree(folder, ignore_errors=True)

    proof.step("what an earlier run built again, removed", nothing)
    export = guestctl("image", "export", ARCH, bundle)
    proof.step("image exported", functools.partial(subprocess.run, export, check=True, cwd=ROOT))
    proof.step("caches copied", copied)
    proof.step("image imported", functools.partial(offline, "image", "import", bundle))
    proof.step("toolchain installed", functools.partial(offline, "toolchain", "install", ARCH))

    def build(name: str) -> None:
        offload = "off" if name in local else "auto"
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
        made = second.manifest["ledger"]
        assert first.name not in local or not made.get("offload"), made
    proof.fact(
        f"built again elsewhere, as uid {STRANGER}, one guest, no network: bit-identical",
        ", ".join(equal),
    )
    if local:
        proof.fact("of these without acceleration", ", ".join(n for n in local if n in equal))
    proof.fact("built again, with other bytes", ", ".join(differing) or "none")
    left = [name for name in members if name not in order]
    proof.fact("not built again", ", ".join(left) or "none")
