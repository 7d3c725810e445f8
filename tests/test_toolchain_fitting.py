"""Fitting: what is replaced, and that nothing is replaced by guess."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestctl import toolchain
from guestctl.places import Places
from guestctl.toolchain import Toolchain
from guestctl.toolchain.elf import Elf, ElfError
from guestctl.toolchain.fitting import Layout, fit_compiler, fit_loader, fit_program, texts_of

TRIPLET = "arm-linux-gnueabi"
LAYOUT = Layout(TRIPLET, "12", "/usr/lib/gcc-cross", "/usr/lib/gcc")
LOADER = Path("/lib64/ld-linux-x86-64.so.2")


@pytest.fixture(scope="module")
def used(places: Places) -> Toolchain:
    return toolchain.install("armv5l", cache_dir=places.cache)


def test_a_program_gets_the_toolchains_loader_and_nothing_moves() -> None:
    before = Path("/usr/bin/true").read_bytes()
    after = fit_program(before)
    assert len(after) == len(before)
    assert Elf(after).interpreter == b"/.tc/ld.so"
    assert Elf(after).segments == Elf(before).segments
    assert sum(one != other for one, other in zip(before, after, strict=True)) < 30


def test_the_loader_keeps_its_size_and_loses_its_folders() -> None:
    before = LOADER.read_bytes()
    after = fit_loader(before)
    assert len(after) == len(before)
    assert after.count(b"/.tc/lib//") >= 2
    with pytest.raises(ElfError, match=r"ld\.so"):
        fit_loader(after)
    with pytest.raises(ElfError, match=r"ld\.so"):
        fit_loader(b"\x7fELF" + bytes(100))


def test_what_a_compiler_says_of_itself() -> None:
    driver = b"x\0../src/configure -v --with-pkgversion='Debian 1-2' --prefix=/usr\0(Debian 1-2) \0"
    assert texts_of(driver) == (
        b"(Debian 1-2) ", b"../src/configure -v --with-pkgversion='Debian 1-2' --prefix=/usr",
    )  # fmt: skip
    with pytest.raises(ElfError, match="configured"):
        texts_of(b"\x7fELF")


def test_a_fitted_driver_says_what_the_native_one_says(used: Toolchain) -> None:
    data = (used.path / f"usr/bin/{TRIPLET}-gcc-12").read_bytes()
    package, configure = texts_of(data)
    # The old texts are still there, but the one that was asked for is loaded.
    assert package.startswith(b"(Debian 12.2.0-14")
    assert configure.startswith(b"../src/configure")
    assert used.configure.encode() + b"\0" in data


def test_fitting_again_finds_that_something_is_not_as_expected(used: Toolchain) -> None:
    for name in (f"usr/bin/{TRIPLET}-gcc-12", f"usr/lib/gcc/{TRIPLET}/12/collect2"):
        data = (used.path / name).read_bytes()
        with pytest.raises(ElfError):
            fit_compiler(data, data, LAYOUT, {})


def test_a_path_that_the_native_compiler_lacks_is_not_replaced() -> None:
    true = Path("/usr/bin/true").read_bytes()
    with pytest.raises(ElfError, match="only one of the two"):
        fit_compiler(true + b"\0/usr/lib/gcc-cross/\0", true, LAYOUT, {})
    with pytest.raises(ElfError, match="only one of the two"):
        fit_compiler(true, true + b"\0new text\0", LAYOUT, {b"old text": b"new text"})


def test_a_text_that_is_there_twice_or_is_not_loaded_is_not_replaced() -> None:
    true = Path("/usr/bin/true").read_bytes()
    twice = true + b"\0old\0old\0"
    with pytest.raises(ElfError, match="2 times"):
        fit_compiler(twice, true + b"\0new\0", LAYOUT, {b"old": b"new"})
    with pytest.raises(ElfError, match=r"loaded|room"):
        fit_compiler(true + b"\0old\0", true + b"\0longer\0", LAYOUT, {b"old": b"longer"})


def test_a_shorter_text_is_put_in_place() -> None:
    true = Path("/usr/bin/true").read_bytes()
    made = fit_compiler(true + b"\0long text\0end", true + b"\0text\0", LAYOUT,
                        {b"long text": b"text"})  # fmt: skip
    assert made == true + b"\0text" + bytes(6) + b"end"
