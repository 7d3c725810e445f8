"""The whole guest suite over each of the other channels, unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from functools import partial
from pathlib import Path

from tests.proof import ROOT, Proof

TITLE = "The guest suite over the network and over a serial line"

# What is not about a channel, or cannot hold on one; each with its reason.
LEFT_OUT = {
    "tcp": {
        "tests/guest/test_clones.py": "only guests with a virtio channel are cloned",
        "tests/guest/test_templates.py": "only guests with a virtio channel are cloned",
    },
    "serial": {
        "tests/guest/test_clones.py": "only guests with a virtio channel are cloned",
        "tests/guest/test_templates.py": "only guests with a virtio channel are cloned",
        "tests/guest/test_commands.py::test_a_hundred_megabytes_come_back_as_they_went": (
            "100 MB each way at the speed of an emulated UART"
        ),
    },
}
# Seconds that the whole of it may take.
_LIMIT = 3600


def suite(channel: str, report: Path) -> None:
    """Runs it; what fails does not stop it, and is told by its report."""
    argv = [sys.executable, "-m", "pytest", "-q", "tests/guest", f"--junit-xml={report}"]
    argv += ["--numprocesses", "3"]
    for left_out in LEFT_OUT[channel]:
        argv += ["--deselect" if "::" in left_out else "--ignore", left_out]
    with open(report.with_suffix(".log"), "wb") as log:
        subprocess.run(
            argv,
            cwd=ROOT,
            env={**os.environ, "GUESTCTL_TEST_CHANNEL": channel},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=_LIMIT,
            check=False,
        )
    assert report.exists(), f"see {report.with_suffix('.log')}"


def outcome(report: Path) -> tuple[int, list[str], list[str]]:
    """How many tests have passed, and which have failed or were skipped."""
    passed, failed, skipped = 0, [], []
    for case in xml.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif case.find("skipped") is not None:
            skipped.append(name)
        else:
            passed += 1
    return passed, failed, skipped


def prove(proof: Proof) -> None:
    for channel, left_out in LEFT_OUT.items():
        report = proof.folder / f"{channel}.xml"
        proof.step(f"guest suite over {channel}", partial(suite, channel, report))
        passed, failed, skipped = outcome(report)
        proof.fact(f"{channel}: tests passed", passed)
        proof.fact(f"{channel}: tests failed", ", ".join(failed) or "none")
        if skipped:
            proof.fact(f"{channel}: tests skipped", ", ".join(skipped))
        for what, why in left_out.items():
            proof.fact(f"{channel}: left out", f"`{what.removeprefix('tests/guest/')}`: {why}")
