"""Names of programs: which target, which role."""

from __future__ import annotations

import pytest

from guestctl.toolchain.names import Name, read_name


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("cc", Name("gcc", None, None)),
        ("gcc", Name("gcc", None, None)),
        ("c++", Name("g++", None, None)),
        ("g++-12", Name("g++", None, "12")),
        ("gcc-12.2.0", Name("gcc", None, "12.2.0")),
        ("cpp", Name("cpp", None, None)),
        ("ld.bfd", Name("ld", None, None)),
        ("armv5tel-unknown-linux-gnueabi-gcc", Name("gcc", "armv5l", None)),
        ("arm-linux-gnueabi-g++-12", Name("g++", "armv5l", "12")),
        ("armv5l-strip", None),
        ("arm-unknown-linux-gnueabi-ar", Name("ar", "armv5l", None)),
        ("arm-linux-musleabi-ld", Name("ld", "armv5l", None)),
        ("arm-linux-gnueabihf-gcc", None),
        ("armv6j-hardfloat-linux-gnueabi-gcc", None),
        ("armv7l-unknown-linux-gnueabi-gcc", None),
        ("x86_64-linux-gnu-gcc", Name("gcc", "x86_64", None)),
        ("x86_64-pc-linux-gnu-objcopy", Name("objcopy", "x86_64", None)),
        ("i686-pc-linux-gnu-gcc", None),
        ("x86_64-linux-gnux32-gcc", None),
        ("aarch64-linux-gnu-gcc", None),
        ("gold", None),
        ("gcc-ar", None),
        ("my-own-ld", None),
        ("ls", None),
    ],
)
def test_names(name: str, means: Name | None) -> None:
    assert read_name(name) == means
