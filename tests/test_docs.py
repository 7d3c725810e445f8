"""What README and docs say is what the code says: commands, tables, links, names of packages."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from guestctl import session, wire
from guestctl.cli.main import program
from guestctl.definitions import BUILD_SYSTEMS, Chunk, Stratum, System
from guestctl.recipe import parse_lock
from guestctl.targets import TARGETS
from guestctl.version import __version__

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of the protocol."""
    part = PROTOCOL.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_protocols_types_are_wires() -> None:
    written = {name: int(number, 16) for number, name, *_ in rows("Types")}
    assert written == {entry.name: entry.value for entry in wire.Type}


def test_the_protocols_records_are_wires() -> None:
    written = {name: int(number) for number, name, *_ in rows("Records")}
    assert written == {entry.name: entry.value for entry in wire.Tag}


def test_the_protocols_requests_are_wires() -> None:
    written = {name: int(number) for number, name, *_ in rows("Requests")}
    assert written == {entry.name: entry.value for entry in wire.Op}


def test_the_protocols_limits_are_wires() -> None:
    written = dict(rows("Limits"))
    assert written["payload"] == f"{wire.PAYLOAD_MAX:,} bytes"
    assert written["SPEC of one job, all pieces"] == f"{wire.SPEC_MAX:,} bytes"
    assert written["credit of a channel"] == f"{wire.CREDIT_WINDOW:,} bytes"
    assert f"{session.SERVICE_BIT:#x}" in PROTOCOL


def commands() -> list[tuple[str, list[str]]]:
    """Each `guestctl …` in a code block of README, recipes or architecture, joined and split."""
    found = []
    for page in PAGES[:1]:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^    (?:\$ )?(guestctl .*)$", text, re.MULTILINE):
            found.append((page.name, shlex.split(line.split("  #")[0])[1:]))
    return found


@pytest.mark.parametrize(("page", "words"), commands())
def test_commands_in_the_readme_can_be_typed(page: str, words: list[str]) -> None:
    """The parser takes them: no noun, verb or option is made up."""
    context = click.Context(program)
    command: click.Command = program
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, f"{page}: {words}"
        command, words = found, words[1:]
    command.make_context(command.name, list(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("shape", [Chunk, Stratum, System], ids=lambda shape: shape.__name__)
def test_every_key_of_definitions_is_documented(shape: type[Chunk]) -> None:
    text = (ROOT / "docs" / "definitions.md").read_text()
    keys = {field.name.replace("_", "-") for field in dataclasses.fields(shape)} - {"place"}
    assert {key for key in keys if f"`{key}`" not in text} == set()


def test_every_build_system_is_documented() -> None:
    text = (ROOT / "docs" / "definitions.md").read_text()
    assert {name for name in BUILD_SYSTEMS if f"`{name}`" not in text} == set()


def test_the_demo_is_locked() -> None:
    lock = ROOT / "examples" / "demo.lock"
    names = {entry.name for entry in parse_lock(lock.read_text(), str(lock))}
    assert names == {"zlib", "lua5.4", "hello", "tinyxml2"}


def test_packages_in_the_docs_have_the_locks_versions() -> None:
    lock = ROOT / "examples" / "demo.lock"
    versions = {}
    for entry in parse_lock(lock.read_text(), str(lock)):
        name = re.fullmatch(r"([a-z]+|tinyxml2)[0-9.]*", entry.name)
        assert name
        versions[name[1]] = re.findall(r"^(?:\d+:)?([\d.]*\d)", entry.version)[0]
    told = {
        (page.name, name, version.strip("."))
        for page in PAGES
        for name, version in re.findall(r"\b([a-z]+2?)-(\d[\d.]*)", page.read_text())
        if name in versions
    }
    assert {"hello", "zlib"} <= {name for _page, name, _version in told}
    assert {each for each in told if each[2] != versions[each[1]]} == set()


def test_versions_of_our_own() -> None:
    log = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", log, re.MULTILINE)[0] == __version__
    assert PROTOCOL.startswith(f"# The agent protocol, version {wire.VERSION}\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (python,) = re.findall(r"Python (3\.\d+)", (ROOT / "docs" / "hacking.md").read_text())
    assert project["requires-python"] == f">={python}"


@pytest.mark.parametrize("arch", sorted(TARGETS))
def test_every_target_has_its_recipe_and_lock(arch: str) -> None:
    for kind in ("yaml", "lock"):
        assert (ROOT / "images" / f"{arch}.{kind}").exists()


def test_the_set_up_installs_what_recipes_ask_of_the_host() -> None:
    """Nothing installed by hand may be missing from `make test`."""
    from guestctl import image

    lines = (ROOT / "tools" / "packages.txt").read_text().splitlines()
    listed = {line.split("#")[0].strip() for line in lines}
    needed = {package for arch in TARGETS for package in image.recipe(arch).host.values()}
    needed |= {row.qemu_package for row in TARGETS.values()}
    essential = {"binutils", "dpkg", "tar"}  # with gcc, and on every Debian
    assert needed - essential <= listed


def test_every_case_of_the_format_has_a_test_of_its_number() -> None:
    text = (ROOT / "docs" / "virtfs-format.md").read_text()
    part = text.split("\n## 7.", 1)[1].split("\n## ", 1)[0]
    cases = {int(number) for number in re.findall(r"^(\d+)\. ", part, re.MULTILINE)}
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_translate_*.py"))
    assert cases == set(range(1, 41))
    assert {int(number) for number in re.findall(r"def test_case_(\d+)_", tests)} == cases


def test_every_fault_has_its_test() -> None:
    """Each row of the table in docs/reliability.md names tests that there are."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    part = text.split("\n## Faults", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    head, *found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head == ["fault", "detection", "caller", "guest", "share", "test"]
    assert len(found) > 40
    for row in found:
        assert len(row) == len(head) and all(row), row
        tests = re.findall(r"`([\w/]+\.py)::(\w+)`", row[-1])
        assert tests, row
        for file, name in tests:
            written = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^def {name}\(", written, re.MULTILINE), f"{row[0]}: {file}::{name}"
