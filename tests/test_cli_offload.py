"""`guestctl offload report`: a ledger as tables and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from guestctl.cli.offload import group
from guestctl.offload import Entry, JobRecord, Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A build with nine calls on the host, one of them on another machine, and one in the guest."""
    made = Ledger(tmp_path / "ledger.jsonl")
    for number in range(10):
        local = number == 3
        made.add(
            Entry(
                guest="g0",
                where="guest" if local else "offload",
                job=1,
                tool="gcc",
                step="configure" if number < 3 else "compile",
                argv=["gcc", "-c", "a.c"],
                cwd="/work",
                status=None if local else 0,
                reason="out of the host's sight: /tmp/a.c" if local else "",
                begin=100.0 + number,
                seconds=0.5,
                host=0.25,
                share=0.0625,
                written=0 if local else 1000,
                session=1.0,
                compile_host="buildbox" if number == 9 else "",
            )
        )
    made.add(JobRecord("g0", 1, ["make", "-j4"], 0, 99.0, 13.0, 1.0))
    made.close()
    return made.path


def test_a_ledger_as_tables(ledger: Path) -> None:
    done = CliRunner().invoke(group, ["report", str(ledger)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "10 calls: 9 on the host, 0 by distcc, 1 in the guest (90.0 % accelerated)"
    assert lines[1] == "1 of them compiled by buildbox"
    assert "9,000 bytes sent to them" in done.output
    assert "out of the host's sight: /tmp/a.c" in done.output
    assert [line.split()[:4] for line in lines if line.startswith("compile ")] == [
        ["compile", "7", "1", "3.50"]
    ]
    head, row = lines[-2:]
    assert head.split()[-6:] == ["CONFIGURE", "COMPILE", "LINK", "9P", "OTHER", "COMMAND"]
    assert row.split()[:4] == ["g0:1", "13.0", "10", "1"]
    assert row.endswith("make -j4")
    assert sum(float(part) for part in row.split()[4:9]) == pytest.approx(13.0, abs=0.3)


def test_a_ledger_as_json(ledger: Path) -> None:
    done = CliRunner().invoke(group, ["report", str(ledger), "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.output)
    assert facts["version"] == 1
    assert facts["where"] == {"offload": 9, "distcc": 0, "guest": 1}
    assert facts["percent_accelerated"] == 90.0
    assert facts["saved"] == pytest.approx(9 * (30 * 0.25 - 0.5))
    assert facts["reasons"] == [{"reason": "out of the host's sight: /tmp/a.c", "calls": 1}]
    (build,) = facts["builds"]
    assert set(build["parts"]) == {"configure", "compile", "link", "9p", "other"}
    assert sum(build["parts"].values()) == pytest.approx(13.0)
    assert build["parts"]["9p"] == pytest.approx(10 * 0.0625)


def test_a_ledger_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(group, ["report", str(tmp_path / "none")])
    assert done.exit_code == 1
    assert "none: No such file" in str(done.exception)
