"""Real guests. The image is built when it is missing, which is most of a cold run's time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestctl import Guest, Pool, image
from guestctl.places import Places

ARCH = "armv5l"
# The channel that the suite's guests get: all of it holds on any of them.
CHANNEL = os.environ.get("GUESTCTL_TEST_CHANNEL", "virtio")


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


@pytest.fixture(scope="session")
def pool(armv5l_image: image.Image, places: Places) -> Iterator[Pool]:
    """One guest for all tests that leave it as they found it."""
    with Pool(ARCH, 1, places=places, channel=CHANNEL) as made:
        yield made


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
        Pool(ARCH, 1, places=places, security_model=request.param, channel=CHANNEL) as made,
        made.lease(timeout=120) as leased,
    ):
        yield leased
