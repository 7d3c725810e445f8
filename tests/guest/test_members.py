"""A pool with a guest and a board: a command goes to either."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guestctl import GuestLost, Pool, ShareError
from guestctl.board import make_key
from guestctl.errors import UsageError
from guestctl.image import Image
from guestctl.places import Places
from tests.test_board import ROOT, Board


def test_a_guest_and_a_board_take_commands_alike(
    armv5l_image: Image,
    places: Places,
    tmp_path: Path,
    program: Path,
) -> None:
    key = tmp_path / "board.key"
    make_key(key)
    board = Board(program, key)
    member = f"127.0.0.1:{board.address[1]}"
    try:
        with (
            Pool("armv5l", 1, places=places, members=(member,), key=str(key)) as pool,
            pool.lease(timeout=30) as guest,
            pool.lease(timeout=30) as other,
        ):
            machines = {guest.name: guest, other.name: other}
            said = {
                name: made.run(["uname", "-m"], timeout=60).stdout
                for name, made in machines.items()
            }
            assert said["g0"] == b"armv5tejl\n" and said["g1"] != said["g0"]
            assert machines["g1"].run(["sh", "-c", "exit 5"], timeout=60).status == 5
            with pytest.raises(ShareError, match="board"), machines["g1"].mounted():
                pass
            machines["g1"].release()
            run = [sys.executable, "-m", "guestctl", "run", "--name", pool.name]
            taken = subprocess.run(
                [*run, "--", "uname", "-m"], capture_output=True, check=True, timeout=60
            )
            assert taken.stdout == said["g1"]
            assert {facts["name"]: facts["state"] for facts in pool.status()} == {
                "g0": "leased",
                "g1": "ready",
            }
    finally:
        board.stop()


def test_an_agent_is_installed_as_it_is_said(
    armv5l_image: Image, x86_64_image: Image, places: Places, tmp_path: Path
) -> None:
    """What `agent key` and `agent install` make and print, word for word, on another machine."""
    guestctl = [sys.executable, "-m", "guestctl", "agent"]
    subprocess.run([*guestctl, "key", "board.key"], cwd=tmp_path, check=True, timeout=60)
    again = subprocess.run(
        [*guestctl, "key", "board.key"], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert again.returncode == 1 and b"guestctl: board.key: File exists" in again.stderr
    assert (tmp_path / "board.key").stat().st_mode & 0o777 == 0o600
    printed = subprocess.run(
        [*guestctl, "install", "--arch", "x86_64", "--listen", "10.99.0.2:7743"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    script, _, unit = printed.partition("# or as /etc/systemd/system/guestctl-agent.service:\n")
    assert "ExecStart=/usr/local/bin/guestctl-agent agent --plain --listen 10.99.0.2:7743" in unit
    (tmp_path / "install.sh").write_text(script)
    argv = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--kill-child", "--fork"]
    done = subprocess.run(
        [*argv, sys.executable, "-m", "tests.agent.installed", tmp_path],
        capture_output=True, timeout=200, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert said["g0"][0] == "armv5tejl\n" and said["g1"][0] == os.uname().machine + "\n"
    assert "board0:" in said["g1"][1] and "us0:" not in said["g1"][1]
    assert [said[name][1].splitlines()[-1] for name in said] == ["0", "0"]
    assert [said[name][2] for name in said] == ["5 typed", "5 typed"]
    assert sorted(path.name for path in tmp_path.glob("[be][it][nc]/*")) == [
        "guestctl-agent",
        "guestctl-agent.key",
    ]


def test_a_line_is_installed_as_it_is_said(x86_64_image: Image, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "guestctl", "agent", "install", "--arch", "x86_64"]
    printed = subprocess.run(
        [*argv, "--line", "/dev/ttyS1@9600"], cwd=tmp_path, capture_output=True, text=True,
        check=True, timeout=60,
    ).stdout  # fmt: skip
    assert "\nguestctl-agent agent --plain --line /dev/ttyS1@9600 &\n" in printed
    assert "key" not in printed
    usage = subprocess.run([tmp_path / "guestctl-agent", "agent"], capture_output=True, check=False)
    assert b"--line TTY[@RATE]" in usage.stderr


def test_a_board_that_is_not_there_is_named(
    armv5l_image: Image, places: Places, tmp_path: Path
) -> None:
    make_key(tmp_path / "key")
    with pytest.raises(GuestLost, match=r"127\.0\.0\.1:9"):
        Pool("armv5l", 1, places=places, members=("127.0.0.1:9",), key=str(tmp_path / "key"))
    with pytest.raises(UsageError, match="key"):
        Pool("armv5l", 1, places=places, members=("127.0.0.1:9",))
