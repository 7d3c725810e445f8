"""`run --bundle` and `run --from`: the same run, from what one file holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from guestctl.image import Image
from guestctl.reproduction import read_order


def run(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "guestctl", "run", *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture(scope="module")
def failed(armv5l_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that failed, and used its share up."""
    place = tmp_path_factory.mktemp("failed")
    share = place / "share"
    share.mkdir()
    (share / "input").write_text("as it was\n")
    script = 'echo "$WHO $(id -u) $(pwd)"; cat input; rm input; exit 3'
    argv = ["--arch", "armv5l", "--share", str(share), "--cwd", "/work", "--env", "WHO=me"]
    done = run(*argv, "--bundle", str(place / "b"), "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (3, "me 0 /work\nas it was\n"), done.stderr
    assert not (share / "input").exists()
    return place / "b"


def test_it_ends_as_it_did(failed: Path, tmp_path: Path) -> None:
    """From anywhere, with nothing of the first run but the file."""
    moved = tmp_path / "elsewhere.bundle"
    moved.write_bytes(failed.read_bytes())
    again = run("--from", str(moved), cwd=tmp_path)
    assert (again.returncode, again.stdout) == (3, "me 0 /work\nas it was\n"), again.stderr
    assert "otherwise" not in again.stderr
    assert os.listdir(tmp_path) == ["elsewhere.bundle"]


def test_what_is_given_counts_and_a_change_is_told(failed: Path, tmp_path: Path) -> None:
    share = tmp_path / "kept"
    again = run("--from", str(failed), "--share", str(share), "--", "sh", "-c", "cat input; pwd")
    assert (again.returncode, again.stdout) == (0, "as it was\n/work\n"), again.stderr
    assert (share / "input").read_text() == "as it was\n"
    refused = run("--from", str(failed), "--share", str(share))
    assert refused.returncode == 2
    assert "not empty" in refused.stderr
    other = run("--from", str(failed), "--env", "PATH=/nowhere")
    assert other.returncode == 127
    assert "when it was recorded it ended otherwise: exited, status 3" in other.stderr


def test_a_run_whose_guest_died_is_recorded(armv5l_image: Image, tmp_path: Path) -> None:
    bundle = tmp_path / "lost"
    script = "echo c >/proc/sysrq-trigger; sleep 1000"
    done = run("--arch", "armv5l", "--bundle", str(bundle), "--", "sh", "-c", script)
    assert done.returncode == 125
    order, result = read_order(bundle)
    assert order.argv == ("sh", "-c", script)
    assert (result["outcome"], result["status"]) == ("lost", 125)
    assert "kernel panicked" in result["error"]


def test_an_image_that_is_not_here_is_named(failed: Path, tmp_path: Path) -> None:
    data = failed.read_bytes()
    order, _result = read_order(failed)
    other = tmp_path / "other"
    other.write_bytes(data.replace(order.image.encode(), b"0" * len(order.image)))
    done = run("--from", str(other))
    assert done.returncode == 125
    assert f"the image {'0' * len(order.image)} of armv5l is not here" in done.stderr
    assert "guestctl image import" in done.stderr


def test_what_makes_no_sense(failed: Path) -> None:
    for argv in (
        ["--from", str(failed), "--arch", "armv5l"],
        ["--from", "/no/such"],
        ["--attach", "g0:1", "--bundle", "b"],
    ):
        assert run(*argv).returncode == 2
