"""Recipes and locks as text: what is refused, and that the message says where."""

from __future__ import annotations

import dataclasses
import json

import pytest

from guestctl import resources
from guestctl.errors import ImageError
from guestctl.recipe import Locked, dump_lock, parse_lock, parse_recipe
from guestctl.targets import TARGETS

ARCHES = sorted(TARGETS)
TEXT = (resources.images() / "armv5l.yaml").read_text()
ENTRY = Locked("root", "dash", "0.5.12-2", "armel", "pool/main/d/dash/dash.deb", 9, "ab" * 32)


def line_of(text: str, start: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if line.startswith(start))


@pytest.mark.parametrize("arch", ARCHES)
def test_the_recipes_of_all_targets_are_whole(arch: str) -> None:
    recipe = parse_recipe((resources.images() / f"{arch}.yaml").read_text(), arch)
    assert recipe.arch == arch
    assert (resources.images() / recipe.kernel.config).exists()


@pytest.mark.parametrize("arch", ARCHES)
def test_the_locks_cover_their_recipes(arch: str) -> None:
    recipe = parse_recipe((resources.images() / f"{arch}.yaml").read_text(), arch)
    lock = parse_lock((resources.images() / f"{arch}.lock").read_text(), arch)
    names = {(entry.group, entry.name) for entry in lock}
    wanted = {("kernel", recipe.kernel.package)}
    wanted |= {("root", name) for name in recipe.root}
    wanted |= {("static", name) for name in recipe.static_libraries}
    wanted |= {("source", tool.source) for tool in recipe.static}
    assert wanted <= names
    assert {entry.architecture for entry in lock} <= {recipe.debian, "all", "source"}


@pytest.mark.parametrize(
    ("old", "new", "key", "what"),
    [
        ("loader:", "loder:", "loder", "unknown key"),
        ("  package:", "  packages:", "kernel.packages", "unknown key"),
        ("  load: 0x8000", "  load: high", "kernel.load", "must be a whole number"),
        ("suites: [", "suites: bookworm #[", "suites", "must be a list"),
        ("triplet: arm-linux-gnueabi", "triplet:", "triplet", "must be a text"),
        ("debian: armel", "arch: armel", "arch", "is given twice"),
    ],
)
def test_a_broken_recipe_names_file_line_and_key(old: str, new: str, key: str, what: str) -> None:
    text = TEXT.replace(old, new, 1)
    number = line_of(text, new.split("#", maxsplit=1)[0].rstrip())
    with pytest.raises(ImageError) as caught:
        parse_recipe(text, "images/x.yaml")
    assert str(caught.value) == f"images/x.yaml:{number}: {key}: {what}"
    assert caught.value.hint


def test_an_unknown_key_gets_the_known_ones_as_a_hint() -> None:
    with pytest.raises(ImageError) as caught:
        parse_recipe(TEXT.replace("loader:", "loder:"), "x.yaml")
    assert "loader" in caught.value.hint


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ImageError, match=r"x.yaml:\d+: cross: is missing"):
        parse_recipe(TEXT.replace("cross: arm-linux-gnueabi-\n", ""), "x.yaml")


@pytest.mark.parametrize("text", ["", "a: [", "- a\n- b\n", "\t"])
def test_what_is_no_recipe_at_all_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match=r"^x\.yaml:\d+: ") as caught:
        parse_recipe(text, "x.yaml")
    assert caught.value.hint


def test_a_lock_comes_back_as_it_was_written() -> None:
    other = dataclasses.replace(ENTRY, name="bash")
    text = dump_lock([ENTRY, other, ENTRY], "armv5l")
    assert parse_lock(text, "x.lock") == (other, ENTRY)
    assert text == dump_lock([other, ENTRY], "armv5l")


@pytest.mark.parametrize(
    "change",
    [{"sha256": "ab"}, {"sha256": "zz" * 32}, {"size": "9"}, {"more": 1}, {"name": None}],
)
def test_a_broken_lock_names_file_and_line(change: dict[str, object]) -> None:
    line = json.dumps(dataclasses.asdict(ENTRY) | change)
    with pytest.raises(ImageError, match=r"^x\.lock:2: ") as caught:
        parse_lock(f"# comment\n{line}\n", "x.lock")
    assert "image lock" in caught.value.hint
