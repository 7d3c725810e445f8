"""The definitions of systems that come with guestctl are whole, and from where they say."""

from __future__ import annotations

import re
from pathlib import Path

from guestctl.builder.components import load_project
from guestctl.builder.graph import in_order

SYSTEMS = Path(__file__).parent.parent / "images" / "systems"


def test_the_small_system_is_from_upstream_tarballs() -> None:
    project = load_project(SYSTEMS, "armv5l")
    members = project.systems["small"]
    chunks = [project.components[name].chunk for name in members]
    tarballs = [chunk.tarball for chunk in chunks if chunk.tarball]
    assert len(tarballs) >= 12
    assert all(each.startswith(("debian:", "deb:linux-source-")) for each in tarballs)
    assert "compiler" in project.components
    assert "compiler" not in members
    assert {"libstdc++", "luafmt"} <= set(members)


def test_patches_are_there_and_nothing_needs_itself() -> None:
    project = load_project(SYSTEMS, "armv5l")
    in_order({name: each.needs for name, each in project.components.items()})
    for component in project.components.values():
        for patch in component.chunk.patches:
            assert (SYSTEMS / patch.file).is_file()


def test_only_what_needs_glibc_calls_its_compiler() -> None:
    """A program that `cc` has linked asks for glibc's loader: the wrappers have other names."""
    project = load_project(SYSTEMS, "armv5l")
    for name, component in project.components.items():
        for _step, commands in component.steps:
            words = re.sub(r"[=\"']", " ", " ".join(commands)).split()
            assert not {"cc", "c++", "g++"} & set(words) or name == "compiler", name
            of_glibc = "glibc" in (name, *component.needs)
            assert "gcc" not in words or of_glibc or name in ("compiler", "musl"), name


def test_the_system_of_both_libraries_has_nothing_of_the_builds_alone() -> None:
    project = load_project(SYSTEMS, "armv5l")
    members = set(project.systems["transition"])
    assert {"musl", "lua", "glibc", "lua-glibc", "which-libc"} <= members
    assert not {"compiler", "bison"} & members
