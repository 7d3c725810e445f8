"""What the tutorial tells people to type exists, and what it shows is compared as it says."""

from __future__ import annotations

import shlex

import click
import pytest

from guestctl.cli.main import program
from tests.tutorial import TUTORIAL, Command, commands_of, files_of, section

LINES = [command.line for command in commands_of(TUTORIAL.read_text())]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("guestctl ")])
def test_commands_can_be_typed(line: str) -> None:
    words = shlex.split(line)[1:]
    context = click.Context(program)
    command: click.Command = program
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, line
        command, words = found, words[1:]
    command.make_context(command.name, list(words))


def test_both_systems_are_built_assembled_packed_and_booted() -> None:
    for title in ("A system of one program", "A real one"):
        lines = " ".join(command.line for command in commands_of(section(title)))
        for verb in ("build", "system assemble", "system pack", "system boot"):
            assert f"guestctl {verb} " in lines, (title, verb)


def test_files_are_as_shown() -> None:
    files = files_of("`a/b`:\n\n    one\n      two\n\n    three\n\nText.\n\n    $ x\n")
    assert files == {"a/b": "one\n  two\n\nthree\n"}


def test_dots_stand_for_anything() -> None:
    assert Command("x", "a … c\n…\nend").matches("a b c\nd\ne\nend\n")
    assert Command("x", "").matches("anything\n")
    assert not Command("x", "a … c").matches("a b d\n")
    assert not Command("x", "a.c").matches("abc\n")
