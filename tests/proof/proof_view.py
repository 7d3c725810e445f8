"""Ten thousand rounds of changes in a real guest, seen by the host's tools the moment after.

Whole rounds of writing, compiling and running by way of offload, on both security models, and a
twentieth as many with three calls of a view by hand in each. A round that meets a stale or
truncated file ends the proof. With GUESTCTL_PROOF_ROUNDS it is another number, a multiple of
10,000; what was done before counts.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from guestctl import Pool, image
from guestctl.toolchain import install
from guestctl.view import Tree, View
from tests.guest.coherence import compiled, rounds
from tests.guest.test_view import drive
from tests.proof import Proof
from tests.viewtools import cross_toolchain

TITLE = "What a guest has written is what the host's tools read"
ARCH = "armv5l"
MODELS = ("mapped-file", "mapped-xattr")
JOBS = 4
ROUNDS = int(os.environ.get("GUESTCTL_PROOF_ROUNDS", "10000"))
BY_VIEW = ROUNDS // 20
AT_ONCE = 500  # rounds of a step, after which an interrupted proof goes on


def prove(proof: Proof) -> None:
    image.build(ARCH, cache_dir=proof.places.cache)
    install(ARCH, cache_dir=proof.places.cache)
    toolchain = proof.folder / "cross"
    if not toolchain.exists():
        cross_toolchain(proof.folder / "cross.new").rename(toolchain)
    (proof.folder / "root/tmp").mkdir(parents=True, exist_ok=True)
    program = compiled(proof.folder)
    for model in MODELS:
        by_offload(proof, model, program)
        by_view(proof, model, toolchain)


def by_view(proof: Proof, model: str, toolchain: Path) -> None:
    def some() -> None:
        with (
            Pool(ARCH, 1, places=proof.places, security_model=model) as pool,
            pool.lease(timeout=120) as guest,
            guest.mounted(),
        ):
            share = guest.work
            trees = {"root": Tree(proof.folder / "root"), "work": Tree(share.path, model)}
            with (
                View(trees, toolchain, cache_dir=proof.places.cache) as view,
                ThreadPoolExecutor(JOBS) as threads,
            ):
                each = AT_ONCE // JOBS
                jobs = [
                    threads.submit(drive, guest, view, f"job {number}", each)
                    for number in range(JOBS)
                ]
                assert [job.result() for job in jobs] == [3 * each] * JOBS

    for number in range(BY_VIEW // AT_ONCE):
        proof.step(f"{model} view {number}", some)
    found = f"{BY_VIEW}; {3 * BY_VIEW}; 0"
    proof.fact(f"{model}: rounds of changes by hand; calls of a view after them; stale ones", found)


def by_offload(proof: Proof, model: str, program: bytes) -> None:
    calls = 0
    for number in range(ROUNDS // AT_ONCE):
        found = proof.folder / f"{model}.{number}.json"

        def some(found: Path = found) -> None:
            with (
                Pool(ARCH, 1, places=proof.places, security_model=model) as pool,
                pool.lease(timeout=120) as guest,
                guest.mounted(),
            ):
                where = rounds(guest, program, JOBS, AT_ONCE // JOBS).where
            found.write_text(json.dumps(where))

        proof.step(f"{model} rounds {number}", some)
        where = json.loads(found.read_text())
        assert where["guest"] == where["distcc"] == 0, where
        calls += where["offload"]
    proof.fact(
        f"{model}: rounds of writing, compiling and running, by {JOBS} jobs at once; "
        "calls of the compiler in them, all on the host; wrong results",
        f"{ROUNDS}; {calls}; 0",
    )
