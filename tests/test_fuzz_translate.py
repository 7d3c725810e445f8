"""The fuzz targets for a minute in all, beside the other tests; and all that they ever found.

conftest.py starts them with the session, at a low priority, and puts this module last.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import FUZZ, ROOT
from tests.fairness import until
from tests.fuzz.fuzz_translate import TARGETS, seeds, try_bytes

LEAST = 100
# Of seconds, far beyond the minute that it should take.
MOST = 600


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_found_before(tmp_path: Path, target: str) -> None:
    for data in seeds(target):
        try_bytes(target, data, tmp_path)


@pytest.mark.timeout(3 * MOST)
def test_a_minute_of_it(pytestconfig: pytest.Config) -> None:
    log = pytestconfig.stash[FUZZ]
    ended = re.compile(r"^status (\d+)\n\Z", re.MULTILINE)
    until(lambda: ended.search(log.read_text(errors="replace")), MOST)
    said = log.read_text(errors="replace")
    assert "status 0" in said.splitlines()[-1], said[-6000:]
    runs = runs_in(said)
    assert len(runs) == len(TARGETS)
    for target, count in zip(TARGETS, runs, strict=True):
        if count < LEAST:
            again(target)


def runs_in(said: str) -> list[int]:
    return [int(count) for count in re.findall(r"^Done (\d+) runs", said, re.MULTILINE)]


def again(target: str) -> None:
    """For a target that was not let run on a busy machine: now most of the others have ended."""
    argv = [sys.executable, "-m", "tests.fuzz.fuzz_translate", target]
    argv += ["--runs", str(LEAST), "--seconds", str(MOST // 3)]
    done = subprocess.run(
        argv, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert min(runs_in(said)) >= LEAST
