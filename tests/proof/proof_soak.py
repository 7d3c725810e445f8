"""Half an hour of jobs while everything is killed at random, and a thousand rounds of lease, run
and kill: no job is lost or falsely successful, and nothing is left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

from guestctl import Pool
from guestctl.soak.leaks import held_by_us, left_of_pool
from tests.proof import Proof
from tests.rounds import rounds

TITLE = "A pool survives whatever is killed"
SLICES = 6
SECONDS = 300
ROUNDS = 1000
PART = 125
ARCH = "armv5l"


def prove(proof: Proof) -> None:
    for seed in range(1, SLICES + 1):
        proof.step(f"soak {seed}", lambda seed=seed: soak(proof, seed))  # type: ignore[misc]
    for begin in range(0, ROUNDS, PART):
        proof.step(f"rounds {begin}", lambda begin=begin: some_rounds(proof, begin))  # type: ignore[misc]
    told(proof)


def soak(proof: Proof, seed: int) -> None:
    argv = [sys.executable, "-m", "guestctl", "bench", "soak", "--arch", ARCH, "--json"]
    argv += ["--guests", "2", "--workers", "3", "--seconds", str(SECONDS), "--seed", str(seed)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False, timeout=SECONDS * 5)
    (proof.folder / f"soak-{seed}.json").write_bytes(done.stdout)
    assert done.returncode == 0, done.stdout.decode()


def some_rounds(proof: Proof, begin: int) -> None:
    with Pool(ARCH, 2, places=proof.places) as pool:
        rounds(pool, range(2), 2)
        before = held_by_us()
        rounds(pool, range(begin, begin + PART), 2)
        after = held_by_us()
    grown = {
        "descriptors": after.descriptors - before.descriptors,
        "threads": after.threads - before.threads,
        "memory": after.memory - before.memory,
        "left": left_of_pool(proof.places, pool.name),
    }
    (proof.folder / f"rounds-{begin}.json").write_text(json.dumps(grown))
    assert not grown["left"] and grown["threads"] <= 0, grown


def told(proof: Proof) -> None:
    slices = [
        json.loads((proof.folder / f"soak-{n}.json").read_text()) for n in range(1, SLICES + 1)
    ]
    parts = [
        json.loads((proof.folder / f"rounds-{n}.json").read_text()) for n in range(0, ROUNDS, PART)
    ]

    def total(key: str) -> Any:
        return sum(len(one[key]) if isinstance(one[key], list) else one[key] for one in slices)

    def joined(key: str) -> str:
        counted: Counter[str] = sum((Counter(one[key]) for one in slices), Counter())
        return ", ".join(f"{what} {n}" for what, n in counted.most_common())

    proof.fact("minutes of soak, in slices of five, two guests, three jobs at a time",
               round(total("seconds") / 60, 1))  # fmt: skip
    proof.fact("jobs that came to their outcome", total("jobs"))
    proof.fact("jobs lost", total("jobs_lost"))
    proof.fact("jobs falsely successful", total("falsely_successful"))
    proof.fact("guests lost under a job", total("guests_lost"))
    proof.fact("guests started besides the first", total("guests_replaced"))
    proof.fact("left behind", total("leaks"))
    proof.fact("jobs a second, by slice", ", ".join(str(one["jobs_per_second"]) for one in slices))
    for what in ("lease", "run"):
        for rank in ("p50", "p99"):
            values = ", ".join(str(one[f"{what}_{rank}"]) for one in slices)
            proof.fact(f"{what}, {rank}, seconds, by slice", values)
    proof.fact("jobs", joined("kinds"))
    proof.fact("what was done to guests and callers besides", joined("mischief"))
    proof.fact("causes of losses", joined("causes"))
    proof.fact("rounds of lease, run and kill", ROUNDS)
    for what in ("descriptors", "threads"):
        proof.fact(f"{what} more after {PART} rounds, at most", max(part[what] for part in parts))
    proof.fact(f"KiB of memory more after {PART} rounds, at most",
               max(part["memory"] for part in parts))  # fmt: skip
    assert not total("jobs_lost") + total("falsely_successful") + total("leaks")
