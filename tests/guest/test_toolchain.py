"""The guest's own compiler against the host's, in a real guest. `toolchain check` runs them all."""

from __future__ import annotations

from dataclasses import replace

from guestctl import image, probes, toolchain
from guestctl.places import Places

ARCH = "armv5l"
CHOSEN = ("C with debug information", "freestanding C", "stack protector", "an error",
          "gcc's version", "dynamic link", "archive", "C by the compiler in /tools")  # fmt: skip


def test_the_host_makes_what_the_guest_makes(armv5l_image: image.Image, places: Places) -> None:
    toolchain.install(ARCH, cache_dir=places.cache)
    first = next(probe for probe in probes.PROBES if probe.what == "C")
    chosen = (first, *(probe for probe in probes.PROBES if probe.what in CHOSEN))
    # One that must fail, lest all pass whatever happens.
    broken = replace(first, what="broken", run=("dynamic", b"something else"))
    verdicts = probes.check(ARCH, places, (*chosen, broken))
    problems = {verdict.probe.what: verdict.problem for verdict in verdicts if verdict.problem}
    assert list(problems) == ["running what was made by broken"], problems
    assert len(verdicts) == len(chosen) + 3
