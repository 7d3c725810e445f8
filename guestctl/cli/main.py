"""The program `guestctl`: finds the noun's module, and turns errors into messages and statuses."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from guestctl.errors import GuestctlError
from guestctl.version import __version__

__all__ = ["main", "program"]

# Noun: (its module, the command there, one line of help). A module is loaded when it is used.
_NOUNS = {
    "agent": ("agent", "group", "Put the agent on a board or another machine."),
    "artifact": ("artifact", "group", "Look at what was built, take it out, remove it."),
    "bench": ("bench", "group", "Put guests under load, and see what holds."),
    "build": ("build", "build", "Build components from definitions, in pristine guests."),
    "cache": ("cache", "group", "Look at what is kept in the cache, and clear it."),
    "console": ("console", "console", "Show the console of a guest's kernel, and type into it."),
    "doctor": ("doctor", "doctor", "Check what this host has and lacks."),
    "image": ("image", "group", "Build and manage the images that guests boot."),
    "offload": ("offload", "group", "Look at what the host has compiled for its guests."),
    "pool": ("pool", "group", "Bring pools of guests up, look at them, take them down."),
    "run": ("run", "run", "Run a command in a guest."),
    "shell": ("shell", "shell", "Open a shell in a guest."),
    "system": ("system", "group", "Pack a root file system for elsewhere, and boot it."),
    "toolchain": ("toolchain", "group", "Install and check cross compilers for the guests."),
    "virtfs": ("virtfs", "group", "Turn archives into shared trees, and back."),
}

_FULL = "free some space there, or set XDG_CACHE_HOME or XDG_RUNTIME_DIR to where there is more"


# As a shell shows whoever was ended by SIGPIPE: 0 would say that all was printed.
_UNREAD = 128 + signal.SIGPIPE


class _Unread(Exception):
    """Whoever read our output has gone."""


@contextlib.contextmanager
def _before_click() -> Iterator[None]:
    """click would take such an end for a failure."""
    try:
        yield
    except BrokenPipeError:
        raise _Unread from None


class _Nouns(click.Group):
    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _before_click():
            return super().make_context(*args, **extra)

    def invoke(self, context: click.Context) -> Any:
        with _before_click():
            return super().invoke(context)

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(_NOUNS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in _NOUNS:
            return None
        module, attribute, _help = _NOUNS[name]
        found = getattr(importlib.import_module(f"guestctl.cli.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, row[2]) for name, row in sorted(_NOUNS.items())])


@click.group(
    cls=_Nouns,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Shell completion: eval "$(_GUESTCTL_COMPLETE=bash_source guestctl)"; zsh and fish'
    " likewise.",
)
@click.version_option(__version__, prog_name="guestctl")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done, to stderr.")
@click.pass_context
def program(context: click.Context, debug: bool, verbose: bool) -> None:
    """Build operating systems for other architectures natively, in pools of QEMU guests.

    \b
    Examples:
      guestctl image build armv5l
      guestctl pool up -n 4 --arch armv5l
      guestctl run -- uname -m
      guestctl pool down
    """
    context.obj["debug"] = debug
    if verbose:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")


def main() -> NoReturn:
    """The console script."""
    settings = {"debug": False}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        status = program(standalone_mode=False, obj=settings)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Abort:
        _fail("interrupted", "", 130)
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f"see {error.ctx.command_path} --help"
        _fail(error.format_message(), hint, error.exit_code)
    except GuestctlError as error:
        if settings["debug"]:
            raise
        _show_console(error)
        _fail(str(error), error.hint, error.exit_status)
    except (_Unread, BrokenPipeError):
        # What is left to be written goes nowhere, or the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_UNREAD)
    except OSError as error:
        if settings["debug"]:
            raise
        name = f"{error.filename!s}: " if error.filename else ""
        hint = _FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else "--debug shows where"
        _fail(f"{name}{error.strerror or error}", hint, 1)
    sys.exit(status if isinstance(status, int) else 0)


def _end(number: int, _frame: object) -> NoReturn:
    """Leaves through every `finally`, so that no guest stays behind."""
    sys.exit(128 + number)


def _show_console(error: GuestctlError) -> None:
    console = getattr(error, "console", "")
    if console:
        lines = console.strip().splitlines()[-20:]
        sys.stderr.write("console:\n" + "".join(f"  {line}\n" for line in lines))


def _fail(message: str, hint: str, status: int) -> NoReturn:
    sys.stderr.write(f"guestctl: {message}\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")
    sys.exit(status)
