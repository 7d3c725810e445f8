"""The run directory must be the user's own, whoever was there first."""

from __future__ import annotations

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
