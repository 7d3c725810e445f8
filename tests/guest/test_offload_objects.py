"""Objects of real packages, C and C++: the host makes those that the guest's own compiler makes."""

from __future__ import annotations

import os

import pytest

from guestctl import Pool, image, stage
from guestctl.offload import read_ledger
from guestctl.offload.names import STUBS
from guestctl.places import Places
from tests.proof.proof_offload import PACKAGES, SAMPLED, tarball

from . import objects
from .shells import reasons, settle, sh
from .test_offload import native

# Headers that a package's own script makes before anything is compiled.
FIRST = {"zlib": "./configure >/dev/null"}


@pytest.mark.parametrize("offload_pool", ["mapped-file"], indirect=True)
@pytest.mark.parametrize("package", SAMPLED)
def test_objects_are_the_guests_own(
    offload_pool: Pool, armv5l_image: image.Image, places: Places, package: str
) -> None:
    rows = objects.known(package, places)
    assert rows
    with offload_pool.lease(timeout=60) as guest:
        assert guest.offload is not None
        with guest.mounted():
            sh(guest, "rm -rf /work/*")
        stage(tarball(places, PACKAGES[package].source), guest.work, into="build")
        with guest.mounted():
            sh(guest, f"cd /work/build/*/; {FIRST.get(package, ':')}")
            settle(guest)
            before = len(read_ledger(guest.offload.ledger.path))
            script = objects.script(rows)
            made = objects.hashes(sh(guest, script).encode())
            settle(guest)
            calls = read_ledger(guest.offload.ledger.path)[before:]
            if not rows[0].sha256:
                (own,) = native(guest, places, script.replace(f"{os.fsdecode(STUBS)}/", ""))
                wanted = objects.hashes(own)
            else:
                wanted = [row.sha256 for row in rows]
    assert reasons(calls) == []
    assert len(calls) == len(rows)
    assert made == wanted
