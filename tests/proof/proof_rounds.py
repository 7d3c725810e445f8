"""A thousand rounds of lease, run and kill: nothing is left, and nothing has grown."""

from __future__ import annotations

import json

from guestctl import Pool
from guestctl.soak.leaks import held_by_us, left_of_pool, lock_names, locks_left
from tests.proof import Proof
from tests.rounds import rounds

TITLE = "A thousand lost guests leave nothing"
ROUNDS = 1000
PART = 125
ARCH = "armv5l"


def prove(proof: Proof) -> None:
    for begin in range(0, ROUNDS, PART):
        proof.step(f"rounds {begin}", lambda begin=begin: some_rounds(proof, begin))  # type: ignore[misc]
    parts = [
        json.loads((proof.folder / f"rounds-{n}.json").read_text()) for n in range(0, ROUNDS, PART)
    ]
    proof.fact("rounds of lease, run and kill", ROUNDS)
    for what in ("descriptors", "threads"):
        proof.fact(f"{what} more after {PART} rounds, at most", max(part[what] for part in parts))
    # One after the other: what the allocator keeps for later comes once, a leak each time.
    proof.fact(f"KiB of memory more after {PART} rounds, part by part",
               ", ".join(str(part["memory"]) for part in parts))  # fmt: skip
    proof.fact("processes, sockets, files and locks left", sum(len(part["left"]) for part in parts))


def some_rounds(proof: Proof, begin: int) -> None:
    locks = lock_names(proof.places)
    with Pool(ARCH, 2, places=proof.places) as pool:
        rounds(pool, range(2), 2)
        before = held_by_us()
        rounds(pool, range(begin, begin + PART), 2)
        after = held_by_us()
    grown = {
        "descriptors": after.descriptors - before.descriptors,
        "threads": after.threads - before.threads,
        "memory": after.memory - before.memory,
        "left": left_of_pool(proof.places, pool.name) + locks_left(proof.places, locks),
    }
    (proof.folder / f"rounds-{begin}.json").write_text(json.dumps(grown))
    assert not grown["left"] and grown["threads"] <= 0, grown
