"""Fifty rounds of lease, run and kill, and a short soak: nothing lost, false or left behind."""

from __future__ import annotations

import time

from guestctl import Pool
from guestctl.image import Image
from guestctl.places import Places
from guestctl.soak import Soak, SoakOptions
from guestctl.soak.leaks import held_by_us, left_of_pool
from tests.rounds import rounds

ROUNDS = 50


def test_fifty_rounds_leave_nothing(armv5l_image: Image, own_places: Places) -> None:
    # What is loaded once and stays must not count.
    with Pool("armv5l", 2, places=own_places) as pool:
        rounds(pool, range(2), 2)
    before = held_by_us()
    with Pool("armv5l", 2, places=own_places) as pool:
        rounds(pool, range(ROUNDS), 2)
    deadline = time.monotonic() + 60
    while left := left_of_pool(own_places, pool.name):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    after = held_by_us()
    assert after.descriptors <= before.descriptors + 2
    assert after.threads <= before.threads
    assert after.memory < before.memory + (32 << 10)
    for folder in ("pools", "locks"):
        assert not list((own_places.runtime / folder).iterdir())
    assert not list((own_places.cache / "shares").iterdir())


def test_a_short_soak(armv5l_image: Image, places: Places) -> None:
    options = SoakOptions("armv5l", guests=2, workers=2, jobs=8, seconds=0, every=1.5, seed=3)
    made = Soak(options, places=places).run()
    facts = made.as_json()
    assert made.good, facts
    assert facts["jobs"] == 8
    assert sum(facts["kinds"].values()) == 8
