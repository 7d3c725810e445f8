"""`guestctl run`."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from guestctl.cli.guests import (
    Place,
    Stream,
    environment,
    guest_options,
    leased,
    start,
    the_pool,
    user,
    wait,
)
from guestctl.cli.recording import compare, recorded, repeated
from guestctl.errors import Detached, GuestctlError, GuestLost, UsageError
from guestctl.spec import STATUS_BROKEN, Outcome, Result

if TYPE_CHECKING:
    from guestctl.process import Process

__all__ = ["run"]

# Whatever shell there is: in a --root it may only be the one of /tools.
SHELL = ("sh", "-c", "command -v bash >/dev/null && exec bash; exec sh")

# What a command cannot start for, and what is to be known of it.
_HINTS = (
    ("the working directory", "--cwd is a path in the guest, or in its --root; --share is /work"),
    ("the root directory", "--root is a path in the guest; --share is /work"),
)


@click.command(context_settings={"ignore_unknown_options": False})
@guest_options
@click.option("--timeout", type=float, metavar="S", help="Kill the command after so long.")
@click.option("--idle-timeout", type=float, metavar="S", help="... after so long without output.")
@click.option("--tty", is_flag=True, help="Give it a terminal; Ctrl-] d detaches.")
@click.option("--attach", metavar="JOB", help="Take over a job whose guestctl has died.")
@click.option(
    "--seen",
    metavar="OUT[:ERR]",
    help="With --attach: how many bytes of its stdout and stderr are there already.",
)
@click.option("--debug-shell", is_flag=True, help="If it fails: a shell in the same place.")
@click.option("--keep-failed", is_flag=True, help="With --arch: keep the guest if it fails.")
@click.option(
    "--max-local",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Fail when more of its compiler calls than that ran in the guest.",
)
@click.option("--result", metavar="FILE", help="Write how it ended to FILE, as JSON.")
@click.option(
    "--bundle", metavar="FILE", help="Record it in FILE, with its share as it was before."
)
@click.option("--from", "from_", metavar="FILE", help="Run what was recorded in FILE once more.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(command: tuple[str, ...], result: str | None, **options: Any) -> int:
    """Run a command in a guest, and exit with its status.

    127: not found, 126: not executable, 128+N: ended by signal N, 124: time-out, 125: guestctl
    itself failed. Ctrl-C stops the command and all that it has started, and keeps the guest; a
    second one ends the guest. Time-outs are in seconds of a guest that runs at its usual speed.

    \b
    Example:
      guestctl run --timeout 60 -- sh -c 'uname -m; id -u'
      guestctl run --arch armv5l --share ./tree -- make -C /work
      guestctl run --arch armv5l --debug-shell --keep-failed -- make
      guestctl run --tty -- bash
      guestctl run --attach g0:3
      guestctl run --attach g0:3 --seen $(stat -c %s log) >>log
      guestctl run --arch armv5l --share ./tree --bundle failed.bundle -- make -C /work
      guestctl run --from failed.bundle
    """
    argv = tuple(os.fsencode(word) for word in command)
    _check(command, options)
    try:
        made = _attached(options) if options["attach"] else _recorded_or_not(command, options)
    except KeyboardInterrupt:
        made = Result(argv, "signalled", 130, signal=2, error="interrupted")
    except Detached as error:
        sys.stderr.write(f"\r\nguestctl: {error}\nhint: {error.hint}\n")
        return 0
    except UsageError:
        raise
    except GuestctlError as error:
        made = _broken(argv, error)
    except BrokenPipeError:
        raise
    except OSError as error:
        name = f"{error.filename!s}: " if error.filename else ""
        made = _broken(argv, GuestctlError(f"{name}{error.strerror or error}"))
    else:
        if made.error:
            sys.stderr.write(f"guestctl: {made.describe()}\n")
            sys.stderr.writelines(f"hint: {hint}\n" for what, hint in _HINTS if what in made.error)
    if result:
        with open(result, "w", encoding="utf-8") as file:
            json.dump(made.as_json(), file, indent=2)
            file.write("\n")
    return made.status


def _check(command: tuple[str, ...], options: dict[str, Any]) -> None:
    """Raises UsageError before any guest is started for nothing."""
    if options["attach"]:
        if command or options["arch"] or options["bundle"] or options["from_"]:
            raise UsageError("--attach takes no COMMAND, --arch, --bundle or --from")
        _seen(options["seen"])
        return
    if options["seen"]:
        raise UsageError("--seen needs --attach")
    if not command and not options["from_"]:
        raise UsageError("there is no command to run", hint="see guestctl run --help")
    environment(options["env"])
    user(options["user"])
    for option in ("tty", "debug_shell"):
        if options[option]:
            from guestctl.cli.terminal import require_terminal

            require_terminal(f"--{option.replace('_', '-')}")


def _broken(argv: tuple[bytes, ...], error: GuestctlError) -> Result:
    """guestctl itself failed: says so, and how."""
    outcome: Outcome = "lost" if isinstance(error, GuestLost) else "error"
    console = getattr(error, "console", "").strip().splitlines()[-20:]
    sys.stderr.write("".join(f"console: {line}\n" for line in console))
    sys.stderr.write(f"guestctl: {error}\n")
    sys.stderr.write(f"hint: {error.hint}\n" if error.hint else "")
    return Result(argv, outcome, STATUS_BROKEN, error=str(error))


def _recorded_or_not(command: tuple[str, ...], options: dict[str, Any]) -> Result:
    with repeated(command, options) as (argv, settled):
        made = _run(argv, settled)
    if options["from_"]:
        compare(options["from_"], command, made)
    return made


def _run(command: tuple[str, ...], options: dict[str, Any]) -> Result:
    with (
        leased(options) as place,
        recorded(place, command, options) as tape,
        _mounted(place, options),
    ):
        limits = {name: options[name] for name in ("timeout", "idle_timeout")}
        process = start(place, command, options, tty=options["tty"], **limits)
        made = _finished(place, process, options, terminal=options["tty"])
        made = tape.result = place.guest.judge(process, made, options["max_local"])
        if made.status and options["debug_shell"]:
            _debug(place, made, options)
        place.keep = bool(made.status and options["keep_failed"])
    if place.keep:
        _say_kept(place, "enters it")
    return made


@contextmanager
def _mounted(place: Place, options: dict[str, Any]) -> Iterator[None]:
    """The share is mounted; says so where an earlier guest died with it, or this one does."""
    work = place.guest.work
    if dirt := work.dirt:
        sys.stderr.write(
            f"guestctl: warning: {work.path} is dirty: {dirt}\n"
            f"hint: guestctl virtfs check {shlex.quote(str(work.path))} shows what is known of it,"
            " and repair takes it as it is\n"
        )
    try:
        with place.mounted():
            yield
    except GuestLost:
        if options["keep_failed"]:
            place.keep = True
            _say_kept(place, "starts another with the same share")
        raise


def _say_kept(place: Place, shell: str) -> None:
    name = place.pool.name
    sys.stderr.write(
        f"guestctl: the guest is kept, with its share {place.guest.work.path}\n"
        f"hint: guestctl shell --name {name} {shell}, guestctl pool down --name {name}"
        " ends it\n"
    )


def _finished(place: Place, process: Process, options: dict[str, Any], *, terminal: bool) -> Result:
    """The result of a command; Ctrl-C ends that, and twice its guest."""
    _mind_interrupts(process)
    try:
        made = wait(process, terminal=terminal, detachable=not place.own)
    except KeyboardInterrupt:
        if process.result is None:
            raise
        made = dataclasses.replace(
            process.result, outcome="signalled", status=130, signal=2, error="interrupted"
        )
    except Detached as error:
        error.hint = (
            f"guestctl run --name {place.pool.name} --attach {process.name} takes it up again,"
            f" within {options['orphan_timeout']:g} s"
        )
        raise
    assert isinstance(made, Result)
    return made


def _debug(place: Place, made: Result, options: dict[str, Any]) -> None:
    """A shell where a command failed: the same root, folder, user and environment."""
    sys.stderr.write(f"guestctl: {made.describe()}; this is a shell where it ran, exit leaves it\n")
    process = start(place, SHELL, options, tty=True)
    wait(process, terminal=True, detachable=False)


def _attached(options: dict[str, Any]) -> Result:
    """Takes over a job of a guestctl that has died, or detached."""
    from guestctl.cli.terminal import stdin_is_terminal
    from guestctl.jobs import parse_job_name

    pool = the_pool(options["name"])
    _guest, number = parse_job_name(options["attach"])
    with pool.adopt(options["attach"], orphan=options["orphan_timeout"]) as guest:
        process = guest.attach(
            number,
            stdout=Stream(sys.stdout.fileno()),
            stderr=Stream(sys.stderr.fileno()),
            timeout=options["timeout"],
            idle_timeout=options["idle_timeout"],
            seen=_seen(options["seen"]),
        )
        _tell_beginning(process, options["seen"])
        terminal = process.tty and stdin_is_terminal()
        place = Place(pool, guest, at_share=False)
        return _finished(place, process, options, terminal=terminal)


def _seen(text: str | None) -> tuple[int, int]:
    """`--seen OUT[:ERR]` as numbers; raises UsageError."""
    out, colon, err = (text or "0").partition(":")
    if not out.isdecimal() or not (err.isdecimal() or not colon):
        raise UsageError(f"--seen takes OUT or OUT:ERR in bytes, not {text!r}")
    return int(out), int(err or 0)


def _tell_beginning(process: Process, seen: str | None) -> None:
    """From where on the output comes; and whether there is a gap behind what has been seen."""
    begins = process.begin()
    if process.tty:
        sys.stderr.write(
            f"guestctl: this is the terminal of {process.name}; Ctrl-L has most programs draw it"
            " anew, Ctrl-] d detaches\n"
        )
        return
    if seen is None:
        out, err = (f"{begin:,}" for begin in begins)
        sys.stderr.write(
            f"guestctl: its output follows, from byte {out} of stdout and byte {err} of stderr\n"
        )
    for name, had, begin in zip(("stdout", "stderr"), _seen(seen), begins, strict=True):
        if seen is not None and had < begin:
            sys.stderr.write(
                f"guestctl: bytes {had:,} to {begin:,} of {name} went to the guestctl that died\n"
            )


def _mind_interrupts(process: Process) -> None:
    """The first Ctrl-C stops the command, and says what a second one would do."""
    told = False

    def interrupted(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if process.result is not None or not process.interrupt():
            signal.default_int_handler(number, frame)
        if not told:
            told = True
            sys.stderr.write("guestctl: stopping the command; Ctrl-C again ends its guest\n")

    signal.signal(signal.SIGINT, interrupted)
