"""The wheel is whole: installed without the checkout, it finds all that an image is built from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel, and shares our dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ("build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    _python("-m", *build)
    (wheel,) = folder.glob("*.whl")
    _python("-m", "venv", "--without-pip", folder / "env")
    site = next((folder / "env").glob("lib/python*/site-packages"))
    _python("-m", "zipfile", "-e", wheel, site)
    ours = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    # The editable install of the checkout must not answer in the wheel's place.
    for entry in ours.iterdir():
        if "guestctl" not in entry.name and not entry.name.endswith(".pth"):
            target = site / entry.name
            if not target.exists():
                target.symlink_to(entry)
    return folder / "env" / "bin"


def _python(*argv: str | Path) -> None:
    subprocess.run([sys.executable, *argv], check=True, capture_output=True, timeout=240)


def run(installed: Path, *argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [installed / "python", *argv],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
        cwd="/",
        **options,  # type: ignore[call-overload]
    )


def test_it_is_the_wheel_that_is_imported(installed: Path) -> None:
    where = run(installed, "-c", "import guestctl; print(guestctl.__file__)").stdout
    assert str(ROOT) not in where
    assert str(installed.parent) in where


def test_nothing_that_was_built_here_is_in_it(installed: Path) -> None:
    site = next(installed.parent.glob("lib/python*/site-packages"))
    data = [path for path in (site / "guestctl" / "data").rglob("*") if path.is_file()]
    assert data
    assert [path for path in data if path.read_bytes().startswith(b"\x7fELF")] == []


def test_image_build_needs_no_checkout(installed: Path) -> None:
    """With the same inputs the image is in the cache, which shows that the inputs are the same."""
    _python("-m", "guestctl", "image", "build", "armv5l")
    run(installed, "-m", "guestctl", "image", "build", "armv5l", env=dict(os.environ))
    shown = run(installed, "-m", "guestctl", "image", "list", "--json").stdout
    assert "armv5l" in shown


def test_the_worker_of_views_is_compiled_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from guestctl.view.worker import worker_program
print(worker_program(Path({str(tmp_path)!r})))
"""
    assert Path(run(installed, "-c", script).stdout.strip()).exists()
