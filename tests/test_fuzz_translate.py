"""The fuzz targets for a minute in all, beside the other tests; and all that they ever found.

conftest.py starts them with the session, at a low priority, and puts this module last.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.conftest import FUZZ
from tests.fuzz.fuzz_translate import TARGETS, seeds, try_bytes


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_found_before(tmp_path: Path, target: str) -> None:
    for data in seeds(target):
        try_bytes(target, data, tmp_path)


def test_a_minute_of_it(pytestconfig: pytest.Config) -> None:
    deadline = time.monotonic() + 500
    while not (ended := re.search(r"^status (\d+)\n\Z", said(pytestconfig), re.MULTILINE)):
        assert time.monotonic() < deadline, said(pytestconfig)[-6000:]
        time.sleep(0.1)
    text = said(pytestconfig)
    assert ended[1] == "0", text[-6000:]
    runs = [int(count) for count in re.findall(r"^Done (\d+) runs", text, re.MULTILINE)]
    assert len(runs) == len(TARGETS) and min(runs) > 100


def said(config: pytest.Config) -> str:
    return config.stash[FUZZ].read_text(errors="replace")
