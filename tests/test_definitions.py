"""Definitions: what is refused with which message, and how files are put together."""

from __future__ import annotations

from typing import Any

import pytest

from guestctl.builder.components import read_project
from guestctl.definitions import BUILD_SYSTEMS, STEPS, Chunk, parse_definition
from guestctl.errors import DefinitionError

DIGEST = "ab" * 32

LIBC = """\
name: libc
kind: chunk
build-system: autotools
configure-commands: [./configure --prefix=/]
"""
CORE = f"""\
name: core
kind: stratum
chunks:
- name: libc
  morph: chunks/libc.morph
  tarball: https://example.org/libc.tar
  sha256: {DIGEST}
- name: zlib
  build-system: make
  build-depends: [libc]
  max-jobs: 1
"""
TOOLS = """\
name: tools
kind: stratum
build-depends:
- morph: strata/core.morph
chunks:
- name: lua
  build-commands: [make linux]
- name: wide
  arch: [x86_64]
- name: stage1
  build-mode: bootstrap
"""
BASE = """\
name: base
kind: system
arch: armv5l
strata:
- morph: strata/core.morph
- morph: strata/tools.morph
"""
FILES = {
    "chunks/libc.morph": LIBC,
    "strata/core.morph": CORE,
    "strata/tools.morph": TOOLS,
    "systems/base.morph": BASE,
}


def with_(**changes: str) -> dict[str, str]:
    return {**FILES, **{name.replace("__", "/") + ".morph": text for name, text in changes.items()}}


def test_a_stratum_says_more_of_a_chunk_than_its_own_file() -> None:
    chunk = read_project(FILES, "armv5l").components["libc"].chunk
    assert chunk.tarball == "https://example.org/libc.tar"
    assert chunk.build_system == "autotools"
    assert chunk.place == "strata/core.morph:4"


def test_steps_are_those_of_the_build_system_but_for_the_chunks_own() -> None:
    steps = dict(read_project(FILES, "armv5l").components["libc"].steps)
    assert steps == {
        "configure": ("./configure --prefix=/",),
        "build": BUILD_SYSTEMS["autotools"].build_commands,
        "install": BUILD_SYSTEMS["autotools"].install_commands,
    }


def test_an_empty_list_of_commands_takes_the_build_systems_away() -> None:
    text = "{name: a, kind: chunk, build-system: make, install-commands: []}"
    assert list(dict(read_project({"a.morph": text}, "armv5l").components["a"].steps)) == ["build"]


def test_chunks_need_their_own_and_all_of_the_strata_below() -> None:
    project = read_project(FILES, "armv5l")
    assert project.components["zlib"].needs == ("libc",)
    assert project.components["lua"].needs == ("libc", "zlib")


def test_conditions_on_the_architecture() -> None:
    assert "wide" not in read_project(FILES, "armv5l").components
    assert "wide" in read_project(FILES, "x86_64").components


def test_a_system_has_no_bootstrap_chunks() -> None:
    project = read_project(FILES, "armv5l")
    assert project.systems == {"base": ("libc", "zlib", "lua")}
    assert project.members("tools") == ("lua", "stage1")


def test_defaults_replace_a_build_system() -> None:
    files = {
        "DEFAULTS": "build-systems: {waf: {build-commands: [./waf]}}",
        "a.morph": "{name: a, kind: chunk, build-system: waf}",
    }
    assert read_project(files, "armv5l").components["a"].steps == (("build", ("./waf",)),)


def test_steps_run_in_order() -> None:
    keys = ", ".join(f"{step}-commands: [{step}]" for step in reversed(STEPS))
    project = read_project({"a.morph": f"{{name: a, kind: chunk, {keys}}}"}, "armv5l")
    assert [step for step, _ in project.components["a"].steps] == list(STEPS)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (
        {"a.morph": "name: a\nkind: chunk\nbuild-comands: [x]\n"},
        "a.morph:3: build-c",
    ),
    "unknown kind": ({"a.morph": "name: a\nkind: bundle\n"}, "a.morph:2: kind"),
    "no kind": ({"a.morph": "name: a\n"}, "a.morph:1: kind: is missing"),
    "no name": ({"a.morph": "kind: chunk\n"}, "a.morph:1: name"),
    "no YAML": ({"a.morph": "name: [a\n"}, "not YAML"),
    "empty": ({"a.morph": "# nothing\n"}, "a.morph:1: the definition is empty"),
    "given twice": ({"a.morph": "name: a\nname: b\nkind: chunk\n"}, "a.morph:2: name: is given"),
    "ref without repo": ({"a.morph": "{name: a, kind: chunk, ref: x}"}, "go together"),
    "no digest": ({"a.morph": "{name: a, kind: chunk, tarball: x}"}, "go together"),
    "short digest": (
        {"a.morph": "{name: a, kind: chunk, tarball: x, sha256: ab}"},
        "64 hexadecimal digits",
    ),
    "both": (
        {
            "a.morph": f"{{name: a, kind: chunk, repo: r, ref: f, tarball: x, sha256: {DIGEST}}}",
        },
        "repo or tarball",
    ),
    "unknown build system": ({"a.morph": "{name: a, kind: chunk, build-system: x}"}, "known are"),
    "unknown mode": ({"a.morph": "{name: a, kind: chunk, build-mode: x}"}, "known are"),
    "a path as name": ({"a.morph": "{name: a/b, kind: chunk}"}, "not a file name"),
    "relative prefix": ({"a.morph": "{name: a, kind: chunk, prefix: usr}"}, "absolute"),
    "a device without a type": (
        {"a.morph": "{name: a, kind: chunk, devices: [{filename: x, type: z}]}"},
        "devices",
    ),
    "two of a name": (
        {"a.morph": "{name: a, kind: chunk}", "b.morph": "{name: a, kind: chunk}"},
        "b.morph:1: a: the name is taken, by a.morph:1",
    ),
    "needs nobody has": (
        {"a.morph": "{name: a, kind: chunk, build-depends: [b]}"},
        "a.morph:1: a: build-depends: there is no 'b'",
    ),
    "a stratum that is not there": (
        with_(strata__tools=TOOLS.replace("core.morph", "gone.morph")),
        "no stratum file 'strata/gone.morph'",
    ),
    "a chunk file that is not there": (
        with_(strata__core=CORE.replace("chunks/libc", "chunks/gone")),
        "no chunk file 'chunks/gone.morph'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_its_place(case: str) -> None:
    files, message = WRONG[case]
    with pytest.raises(DefinitionError) as caught:
        read_project(files, "armv5l")
    assert message in str(caught.value)


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(DefinitionError, match="no component, stratum or system 'x'"):
        read_project(FILES, "armv5l").members("x")


def test_every_key_is_documented_by_its_shape() -> None:
    parsed = parse_definition("{name: a, kind: chunk, max-jobs: 0x10}", "a.morph")
    assert isinstance(parsed, Chunk)
    assert parsed.max_jobs == 16
