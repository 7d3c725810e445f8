"""What a build shows while it goes on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from guestctl.builder.events import Event
from guestctl.cli.building import Screen


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen() as screen:
        screen(Event("start", "a", guest="g0"))
        screen(Event("step", "a", "build"))
        screen(Event("failed", "b", "b: build-commands: make: status 2", seconds=2.5))
        screen(Event("stopped", "c", "needs b"))
        screen(Event("done", "a", seconds=1.0, calls={"offload": 3, "guest": 1}))
    assert capsys.readouterr().err.splitlines() == [
        "a: start in g0",
        "a: step build",
        "b: failed build-commands: make: status 2 after 2.5 s",
        "c: stopped needs b",
        "a: done after 1.0 s (75 % of 4 calls accelerated)",
    ]


def test_a_table_says_what_builds_where_how_long_and_how_much_on_the_host() -> None:
    screen = Screen()
    screen.calls = lambda name: {"offload": 9, "guest": 1} if name == "a" else {}
    screen(Event("done", "z", rest=1000.0, calls={"guest": 10}))
    screen(Event("start", "a", guest="g0", rest=1000.0))
    screen(Event("step", "a", "build", rest=1000.0))
    screen(Event("start", "b", guest="g1", rest=1000.0))
    console = Console(file=io.StringIO(), width=100)
    console.print(screen._table())
    assert isinstance(console.file, io.StringIO)
    words = [line.split() for line in console.file.getvalue().splitlines()]
    assert words[1][:3] == ["a", "g0", "build"]
    assert " ".join(words[1][5:]) == "90 % of 10 calls accelerated"
    assert words[2][:2] == ["b", "g1"]
    assert "s to go; 45 % of 20 calls accelerated" in " ".join(words[3])
