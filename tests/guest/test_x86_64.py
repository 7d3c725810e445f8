"""The second row of the target table: nothing anywhere knows ARM alone."""

from __future__ import annotations

from pathlib import Path

from guestctl import Pool, collect
from guestctl.image import Image
from guestctl.places import Places


def test_it_boots_runs_and_shares(x86_64_image: Image, places: Places, tmp_path: Path) -> None:
    with Pool("x86_64", 1, places=places) as pool:
        (facts,) = pool.status()
        assert facts["accelerator"] in ("kvm", "tcg")
        # Without KVM somebody is told why.
        assert (facts["accelerator"] == "kvm") == (not pool.remarks())
        with pool.lease(30) as guest:
            assert guest.run(["uname", "-m"], timeout=60).check().stdout == b"x86_64\n"
            with guest.mounted():
                source = b"int main(void) { return 42; }"
                argv = ["gcc", "-x", "c", "-o", "prog", "-"]
                guest.run(argv, stdin=source, timeout=120).check()
                assert guest.run(["./prog"], timeout=60).status == 42
            collect(guest.work, tmp_path / "out.tar")
    assert (tmp_path / "out.tar").stat().st_size > 0
