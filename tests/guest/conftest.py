"""Real guests. The image is built when it is missing, which is most of a cold run's time.

Tests that are marked `channels` run over these as well, unchanged. With `GUESTCTL_TEST_CHANNEL`
every pool of the suite that does not say otherwise has that channel, and nothing runs twice:
`make proof PROOF=channels` does so.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from guestctl import Guest, Pool, image
from guestctl.offload import Entry, read_ledger
from guestctl.places import Places
from guestctl.plan import PoolOptions
from guestctl.toolchain import install

from .shells import settle

ARCH = "armv5l"
USUAL = "virtio"
# The channel that the suite's guests get: all of it holds on any of them.
CHANNEL = os.environ.get("GUESTCTL_TEST_CHANNEL", USUAL)

PoolOf = Callable[[str], Pool]


def pytest_configure() -> None:
    """Has pools use CHANNEL where a test says nothing."""
    parameters = inspect.signature(PoolOptions).parameters
    usual = [
        CHANNEL if name == "channel" else parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty
    ]
    PoolOptions.__init__.__defaults__ = tuple(usual)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "channel" not in metafunc.fixturenames:
        return
    marks = [mark.args for mark in metafunc.definition.iter_markers("channels")]
    others = [name for names in marks for name in names] if CHANNEL == USUAL else []
    if others:
        metafunc.parametrize("channel", [CHANNEL, *others], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.guest)


@pytest.fixture(scope="session")
def armv5l_image(places: Places) -> image.Image:
    return image.build(ARCH, cache_dir=places.cache)


@pytest.fixture(scope="session")
def x86_64_image(places: Places) -> image.Image:
    return image.build("x86_64", cache_dir=places.cache)


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """The one that this run of the test is over."""
    return str(getattr(request, "param", CHANNEL))


@pytest.fixture(scope="session")
def pools(armv5l_image: image.Image, places: Places) -> Iterator[PoolOf]:
    """One guest a channel, from when it is first asked for."""
    made: dict[str, Pool] = {}
    with ExitStack() as stack:

        def pool_of(channel: str) -> Pool:
            if channel not in made:
                pool = Pool(ARCH, 1, places=places, channel=channel)
                made[channel] = stack.enter_context(pool)
            return made[channel]

        yield pool_of


@pytest.fixture
def pool(pools: PoolOf, channel: str) -> Pool:
    """One guest for all tests that leave it as they found it."""
    return pools(channel)


@pytest.fixture
def guest(pool: Pool) -> Iterator[Guest]:
    with pool.lease(timeout=120) as leased:
        yield leased


@pytest.fixture(params=["mapped-file", "mapped-xattr"])
def shared_guest(
    request: pytest.FixtureRequest, armv5l_image: image.Image, places: Places
) -> Iterator[Guest]:
    """A pristine guest under each security model."""
    with (
        Pool(ARCH, 1, places=places, security_model=request.param) as made,
        made.lease(timeout=120) as leased,
    ):
        yield leased


@pytest.fixture(scope="session", params=["mapped-file", "mapped-xattr"])
def offload_pool(
    request: pytest.FixtureRequest, armv5l_image: image.Image, places: Places
) -> Iterator[Pool]:
    install(ARCH, cache_dir=places.cache)
    with Pool(ARCH, 1, places=places, security_model=request.param) as made:
        assert made.status()[0]["offload"] == "auto", made.remarks()
        yield made


@pytest.fixture
def offload_guest(offload_pool: Pool) -> Iterator[Guest]:
    with offload_pool.lease(timeout=60) as leased, leased.mounted():
        leased.run(["sh", "-c", "rm -rf /work/*"], timeout=60).check()
        yield leased


@pytest.fixture
def calls(offload_guest: Guest) -> Callable[[], list[Entry]]:
    """The ledger's entries since the test began."""
    assert offload_guest.offload is not None
    path = offload_guest.offload.ledger.path
    before = len(read_ledger(path))

    def since() -> list[Entry]:
        settle(offload_guest)
        # Two that end together are written in any order.
        return sorted(read_ledger(path)[before:], key=lambda entry: entry.begin)

    return since
