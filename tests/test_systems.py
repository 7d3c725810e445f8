"""The definitions of systems that come with guestctl are whole, and from where they say."""

from __future__ import annotations

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


def test_no_command_calls_a_compiler_of_glibc() -> None:
    """A program that `cc` has linked asks for glibc's loader: the wrappers have other names."""
    project = load_project(SYSTEMS, "armv5l")
    for name, component in project.components.items():
        for _step, commands in component.steps:
            words = " ".join(commands).replace("=", " ").split()
            assert not {"cc", "c++", "g++"} & set(words) or name == "compiler", name
            assert "gcc" not in words or name in ("compiler", "musl"), name
