"""The run directory must be the user's own, whoever was there first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guestctl.errors import HostLacks
from guestctl.places import Places, private_directory


def test_it_is_made_private(tmp_path: Path) -> None:
    made = private_directory(tmp_path / "run")
    assert made.stat().st_mode & 0o777 == 0o700
    assert private_directory(tmp_path / "run") == made


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to("real")
    with pytest.raises(HostLacks, match="not a private directory"):
        private_directory(tmp_path / "run")


def test_an_open_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    with pytest.raises(HostLacks):
        private_directory(tmp_path / "run")


def test_xdg_variables_are_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CACHE_HOME", "CONFIG_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{variable}", str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    places = Places.of_user()
    assert places.cache == tmp_path / "CACHE_HOME" / "guestctl"
    assert places.config == tmp_path / "CONFIG_HOME" / "guestctl"
    assert places.runtime == tmp_path / "RUNTIME_DIR" / "guestctl"


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that somebody else made in /tmp before us, however private."""
    private_directory(tmp_path / "run")
    owner = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    with pytest.raises(HostLacks, match="not a private directory"):
        private_directory(tmp_path / "run")


@pytest.mark.parametrize("made", ["link", "file", "dangling"])
def test_a_name_that_was_taken_in_tmp_is_no_way_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    """The way by /tmp, for a user without XDG_RUNTIME_DIR: nothing is written behind the name."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    taken = tmp_path / f"guestctl-{os.getuid()}"
    if made == "file":
        taken.write_text("")
    else:
        taken.symlink_to(elsewhere if made == "link" else tmp_path / "none")
    monkeypatch.setattr("guestctl.places._TMP", str(tmp_path))
    with pytest.raises(HostLacks, match="not a private directory"):
        Places.of_user()
    assert not list(elsewhere.iterdir())
    assert not (tmp_path / "none").exists()
