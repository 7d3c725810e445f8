"""The thirteen packages of examples/definitions, built twice, in stores that know nothing of each
other, with one guest and with two: the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from guestctl.builder.store import Artifact, Store
from tests.proof import ROOT, Proof

TITLE = "Thirteen packages from their upstream tarballs, twice"
ARCH = "armv5l"
GUESTS = {"first": 2, "second": 1}


def build(folder: Path, guests: int) -> None:
    """One command, as a user types it; what an interrupted run has built is there already."""
    words = ["build", "examples/definitions", "packages", "--arch", ARCH, "-n", str(guests)]
    subprocess.run(
        [sys.executable, "-m", "guestctl", *words, "--keep-going", "--json"],
        env={**os.environ, "XDG_DATA_HOME": str(folder)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def artifacts(folder: Path) -> dict[str, Artifact]:
    """What `packages` came to, by the keys of today: a store may hold older ones, too."""
    from guestctl.cli.build import make_builder

    planner = make_builder(ROOT / "examples" / "definitions", ARCH).planner
    store = Store(folder / "guestctl")
    found = {name: store.get(planner.key(name)) for name in planner.needed(["packages"])}
    return {name: artifact for name, artifact in found.items() if artifact}


def strata() -> dict[str, list[dict[str, Any]]]:
    """The chunks of the examples, by stratum, as the command line reads them."""
    from guestctl.builder.components import load_project

    project = load_project(ROOT / "examples" / "definitions", ARCH)
    return {
        name: [vars(project.components[each].chunk) for each in members]
        for name, members in project.strata.items()
    }


def prove(proof: Proof) -> None:
    for run, guests in GUESTS.items():
        proof.step(f"{run} build, guests: {guests}", partial(build, proof.folder / run, guests))
    first, second = (artifacts(proof.folder / run) for run in GUESTS)
    chunks = {chunk["name"]: chunk for chunk in strata()["packages"]}
    assert set(chunks) <= set(first) and set(first) == set(second)
    same = [name for name in first if first[name].tar.read_bytes() == second[name].tar.read_bytes()]
    proof.fact("components of the stratum `packages`, and of the C library below", _counts(first))
    systems = Counter(chunk["build_system"] for chunk in chunks.values())
    proof.fact("build systems", ", ".join(f"{name} {n}" for name, n in sorted(systems.items())))
    proof.fact("artifacts with the same bytes in both builds", f"{len(same)} of {len(first)}")
    proof.fact("artifacts that differ", ", ".join(sorted(set(first) - set(same))) or "none")
    parts = [part for name in chunks for part in first[name].manifest["parts"]]
    split = [
        part for name in chunks for part in first[name].manifest["parts"]
        if first[name].part(part).read_bytes() == second[name].part(part).read_bytes()
    ]  # fmt: skip
    proof.fact("parts of the packages with the same bytes in both", f"{len(split)} of {len(parts)}")
    calls: Counter[str] = Counter()
    for name in chunks:
        calls.update(first[name].manifest["ledger"])
    share = 100 * (calls.total() - calls["guest"]) / max(1, calls.total())
    proof.fact("calls of compilers and the like in the first build", calls.total())
    proof.fact("of these on the host", f"{share:.1f} %")
    for name in sorted(chunks):
        facts = first[name].manifest
        seconds = facts["seconds"]
        moved = seconds.get("stage", 0.0) + seconds.get("collect", 0.0)
        files = sum(1 for entry in facts["files"] if entry["type"] == "file")
        proof.fact(
            name,
            f"{sum(seconds.values()):.0f} s, of these {moved:.1f} s staging and collecting;"
            f" {files} files; ledger {json.dumps(facts['ledger'])}",
        )
    assert len(same) == len(first), "not the same bytes"
    assert len(split) == len(parts), "parts have not the same bytes"
    for run in GUESTS:
        shutil.rmtree(proof.folder / run)


def _counts(found: dict[str, Artifact]) -> str:
    members = strata()
    return f"{len(members['packages'])}, {len(found) - len(members['packages'])}"
