"""What all tests share: nobody runs them as root, and images are built once for the session."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guestctl.places import Places

FUZZ = pytest.StashKey["subprocess.Popen[str]"]()
_FUZZ_TESTS = "test_fuzz_translate.py"


def pytest_sessionstart() -> None:
    """What claims to work for an ordinary user must be tested as one."""
    if os.getuid() == 0:
        pytest.exit("run the tests as a user that is not root: make test", returncode=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs beside the others is judged at the end."""
    items.sort(key=lambda item: item.path.name == _FUZZ_TESTS)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Starts the fuzz targets, one after the other, when their tests are among those to run."""
    if session.config.option.collectonly or not any(
        item.path.name == _FUZZ_TESTS for item in session.items
    ):
        return
    seconds = int(os.environ.get("GUESTCTL_FUZZ_SECONDS", "60")) // 3
    one = f"{sys.executable} -m tests.fuzz.fuzz_translate --seconds {seconds}"
    session.config.stash[FUZZ] = subprocess.Popen(
        ["nice", "-n", "19", "sh", "-ec", f"for t in archive tree vmeta; do {one} $t; done"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=Path(__file__).parent.parent,
        start_new_session=True,
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    process = config.stash.get(FUZZ, None)
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)


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
