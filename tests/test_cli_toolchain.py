"""`guestctl toolchain` and what `doctor` says of toolchains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from guestctl import examine, toolchain
from guestctl.cli.main import program
from guestctl.places import Places
from guestctl.toolchain import Toolchain

ARCH = "armv5l"


@pytest.fixture(scope="module")
def used(places: Places) -> Toolchain:
    return toolchain.install(ARCH, cache_dir=places.cache)


def run(*words: str) -> Result:
    return CliRunner().invoke(program, ["toolchain", *words], obj={})


def test_list_names_what_is_installed(used: Toolchain) -> None:
    facts = json.loads(run("list", ARCH, "--json").stdout)
    assert facts["version"] == 1
    row = next(row for row in facts["toolchains"] if row["id"] == used.id)
    assert row["gcc"] == used.version
    assert row["packages"]["gcc-12:armel"].startswith("12.2.0")
    assert Path(row["folder"]).is_dir()
    assert used.id in run("list").stdout


def test_install_says_what_is_there(used: Toolchain) -> None:
    facts = json.loads(run("install", ARCH, "--locked", "--json").stdout)
    assert facts["id"] == used.id


def test_map_shows_the_program_behind_a_name(used: Toolchain) -> None:
    names = ("cc", "armv5tel-unknown-linux-gnueabi-g++", "gcc-11", "x86_64-linux-gnu-gcc", "ls")
    rows = json.loads(run("map", ARCH, *names, "--json").stdout)["names"]
    assert [row["role"] for row in rows] == ["gcc", "g++", "gcc", "gcc", None]
    programs = [row["program"] for row in rows]
    assert programs[2:] == [None, None, None]
    assert programs[0] == str(used.path / "usr/bin/arm-linux-gnueabi-gcc-12")
    assert programs[1] == str(used.path / "usr/bin/arm-linux-gnueabi-g++-12")
    usual = run("map", ARCH).stdout
    assert "arm-linux-gnueabi-objcopy" in usual
    assert "nothing" not in usual


def test_doctor_names_the_toolchain_or_how_to_get_it(
    used: Toolchain, places: Places, own_places: Places
) -> None:
    def found(where: Places) -> examine.Finding:
        what = f"{ARCH}: toolchain"
        return next(each for each in examine.examine(where, ARCH) if each.what == what)

    assert (found(places).mark, used.version in found(places).found) == ("ok", True)
    assert found(own_places).mark == "note"
    assert found(own_places).mend == f"guestctl toolchain install {ARCH}"
