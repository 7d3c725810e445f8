"""What the stubs of offload stand for is in the image and in /tools, by the same names."""

from __future__ import annotations

import pytest

from guestctl import Guest

STUBS = "/tools/offload/bin"


@pytest.mark.parametrize("path", ["/usr/bin", "/tools/bin"])
def test_every_stub_has_a_program_behind_it(guest: Guest, path: str) -> None:
    missing = guest.run(
        ["sh", "-ec", f"cd {STUBS}; for name in *; do [ -x {path}/$name ] || echo $name; done"]
    )
    assert missing.check().stdout == b""
