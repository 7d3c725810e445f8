"""Half an hour of jobs while everything is killed at random: no job is lost or falsely successful,
and nothing is left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

from tests.proof import Proof

TITLE = "A pool survives whatever is killed"
SLICES = 6
SECONDS = 300
ARCH = "armv5l"


def prove(proof: Proof) -> None:
    for seed in range(1, SLICES + 1):
        proof.step(f"soak {seed}", lambda seed=seed: soak(proof, seed))  # type: ignore[misc]
    told(proof)


def soak(proof: Proof, seed: int) -> None:
    argv = [sys.executable, "-m", "guestctl", "bench", "soak", "--arch", ARCH, "--json"]
    argv += ["--guests", "2", "--workers", "3", "--seconds", str(SECONDS), "--seed", str(seed)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False, timeout=SECONDS * 5)
    (proof.folder / f"soak-{seed}.json").write_bytes(done.stdout)
    assert done.returncode == 0, done.stdout.decode()


def told(proof: Proof) -> None:
    slices = [
        json.loads((proof.folder / f"soak-{n}.json").read_text()) for n in range(1, SLICES + 1)
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
    assert not total("jobs_lost") + total("falsely_successful") + total("leaks")
