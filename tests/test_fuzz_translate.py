"""The fuzz target for a while, and all that it ever found."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.fuzz_translate import run, seeds, try_bytes


def test_what_was_found_before(tmp_path):
    for data in seeds():
        try_bytes(data, tmp_path)


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_for_a_while(seed):
    assert run(float(os.environ.get("GUESTCTL_FUZZ_SECONDS", "10")), seed) > 20
