"""The program's edges: start-up, help, completion, errors."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

from guestctl.cli.main import program
from guestctl.version import __version__


def guestctl(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "guestctl", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def commands() -> list[tuple[str, click.Command]]:
    """Every command that there is, by the words that call it."""
    found = []
    top = click.Context(program)
    for noun in program.list_commands(top):
        command = program.get_command(top, noun)
        assert command is not None
        if isinstance(command, click.Group):
            context = click.Context(command)
            for verb in command.list_commands(context):
                inner = command.get_command(context, verb)
                assert inner is not None
                found.append((f"{noun} {verb}", inner))
        else:
            found.append((noun, command))
    return found


@pytest.mark.parametrize(("name", "command"), commands(), ids=str)
def test_every_command_has_help_with_an_example(name: str, command: click.Command) -> None:
    text = click.Context(command, info_name=f"guestctl {name}").get_help()
    assert "Example" in text
    assert f"guestctl {name.split(maxsplit=1)[0]}" in text


def test_version() -> None:
    done = guestctl("--version")
    assert done.stdout == f"guestctl, version {__version__}\n"


def test_starting_imports_little() -> None:
    """What costs start-up is imports; the time itself is the bench's."""
    code = "import sys, guestctl.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"asyncio", "rich", "yaml", "libarchive", "qemu", "subprocess", "guestctl.pool"}
    assert not heavy & set(done.stdout.split())


def test_starting_takes_less_than_150_milliseconds() -> None:
    """Of a processor, which on a quiet machine is the time that it takes."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert guestctl("--version").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.15


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    env = {**os.environ, "_GUESTCTL_COMPLETE": f"{shell}_source"}
    done = subprocess.run(
        [Path(sys.executable).parent / "guestctl"],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=True,
    )
    assert "guestctl" in done.stdout


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("guestctl po", "pool"),
        ("guestctl pool st", "status"),
        ("guestctl run --sh", "--share"),
    ],
)
def test_completion_knows_nouns_verbs_and_options(words: str, wanted: str) -> None:
    env = {
        **os.environ,
        "_GUESTCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [Path(sys.executable).parent / "guestctl"],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=True,
    )
    assert f"plain,{wanted}" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["nonsense"], 2, "No such command"),
        (["pool", "up"], 2, "--arch"),
        (["--nonsense"], 2, "hint:"),
        (["pool", "up", "-n", "x", "--arch", "armv5l"], 2, "valid integer"),
    ],
)
def test_wrong_usage(argv: list[str], status: int, words: str) -> None:
    done = guestctl(*argv)
    assert done.returncode == status
    assert done.stderr.startswith("guestctl: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["image", "list"], ["doctor"]])
def test_a_reader_that_goes_away_is_no_fault(argv: list[str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "guestctl", *argv],
            stdout=theirs,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (141, b"")


def test_doctor_names_what_is_missing(tmp_path: Path) -> None:
    done = guestctl("doctor", "--arch", "armv5l", env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 3
    assert "apt-get install qemu-system-arm" in done.stdout


def test_doctor_finds_this_host_in_order() -> None:
    done = guestctl("doctor", "--json")
    assert done.returncode == 0, done.stdout
    assert '"version": 1' in done.stdout
