"""What all tests share: nobody runs them as root, and images are built once for the session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guestctl.places import Places


def pytest_sessionstart() -> None:
    """What claims to work for an ordinary user must be tested as one."""
    if os.getuid() == 0:
        pytest.exit("run the tests as a user that is not root: make test", returncode=2)


@pytest.fixture(scope="session")
def places() -> Places:
    """The user's own folders: the image cache in them makes the second run quick."""
    return Places.of_user()


@pytest.fixture
def own_places(tmp_path: Path, places: Places) -> Places:
    """Folders of this test's own, with the user's images."""
    for name in ("cache", "run", "config"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / "cache" / "images").symlink_to(places.cache / "images")
    return Places(tmp_path / "cache", tmp_path / "run", tmp_path / "config", tmp_path / "data")
