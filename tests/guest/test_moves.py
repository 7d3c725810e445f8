"""A built source tree that is collected and staged in another guest is up to date for its make.

lua, built whole on the host and in part in a guest. A whole kernel: `make proof`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from guestctl import Guest, Pool, collect, stage
from guestctl.image import Image
from guestctl.packages import Archive
from guestctl.places import Places
from guestctl.recipe import parse_lock

LOCK = Path(__file__).parent.parent.parent / "examples" / "demo.lock"
SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
WHOLE = ["liblua.a", "lua", "luac"]
FEW = ["lctype.o", "lzio.o"]


@pytest.fixture(scope="module")
def lua(places: Places) -> Path:
    entries = [entry for entry in parse_lock(LOCK.read_text(), str(LOCK)) if entry.name == "lua5.4"]
    (path,) = Archive(places.cache / "packages", suites=SUITES).fetch(entries).values()
    return path


@pytest.fixture(scope="module")
def built(lua: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of lua, compiled on the host, with times of nanoseconds."""
    place = tmp_path_factory.mktemp("lua")
    subprocess.run(["tar", "-xf", lua, "-C", place, "--strip-components=1"], check=True)
    command = ["make", "-s", "-j2", "-C", place / "src", "CFLAGS=-O0", "LIBS=-lm", *WHOLE]
    subprocess.run(command, check=True, timeout=200)
    return place


def outdated(guest: Guest, where: str, targets: list[str]) -> bool:
    """What the guest's make says; with a compiler that would fail, too."""
    done = guest.run(["make", "-C", where, "-q", *targets], timeout=60)
    assert done.status in (0, 1), done
    really = guest.run(["make", "-C", where, "CC=false", *targets], timeout=60)
    assert (really.status == 0) == (done.status == 0), really
    return done.status == 1


@pytest.mark.parametrize("model", ["mapped-file", "mapped-xattr"])
def test_nothing_is_compiled_again(
    armv5l_image: Image, places: Places, tmp_path: Path, lua: Path, built: Path, model: str
) -> None:
    with (
        Pool("armv5l", 2, places=places, security_model=model) as pool,
        pool.lease(timeout=30) as here,
        pool.lease(timeout=30) as there,
    ):
        stage(built, here.work, into="whole")
        stage(lua, here.work, into="few")
        with here.mounted():
            command = "cd few/*/src && make -s CFLAGS=-O0 " + " ".join(FEW)
            here.run(["sh", "-ec", command], timeout=200).check()
        collect(here.work, tmp_path / "built.tar.gz")
        stage(tmp_path / "built.tar.gz", there.work)
        folder = next((there.work.path / "few").glob("lua*")).name
        with there.mounted():
            places_of = {"whole/src": WHOLE, f"few/{folder}/src": FEW}
            for where, targets in places_of.items():
                assert not outdated(there, where, targets)
                there.run(["touch", f"{where}/llimits.h"], timeout=60).check()
                assert outdated(there, where, targets)
