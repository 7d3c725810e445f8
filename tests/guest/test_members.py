"""A pool with a guest and a board: a command goes to either."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestctl import GuestLost, Pool, ShareError
from guestctl.board import make_key
from guestctl.errors import UsageError
from guestctl.image import Image
from guestctl.places import Places
from tests.test_board import Board


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
            assert {facts["name"]: facts["state"] for facts in pool.status()} == {
                "g0": "leased",
                "g1": "leased",
            }
    finally:
        board.stop()


def test_a_board_that_is_not_there_is_named(
    armv5l_image: Image, places: Places, tmp_path: Path
) -> None:
    make_key(tmp_path / "key")
    with pytest.raises(GuestLost, match=r"127\.0\.0\.1:9"):
        Pool("armv5l", 1, places=places, members=("127.0.0.1:9",), key=str(tmp_path / "key"))
    with pytest.raises(UsageError, match="key"):
        Pool("armv5l", 1, places=places, members=("127.0.0.1:9",))
