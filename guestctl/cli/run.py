"""`guestctl run`."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from guestctl.errors import GuestctlError, GuestLost, UsageError
from guestctl.spec import STATUS_BROKEN, Outcome, Result

if TYPE_CHECKING:
    from guestctl.guest import Guest

__all__ = ["run"]


@click.command(context_settings={"ignore_unknown_options": False})
@click.option("--name", default=None, metavar="POOL", help="The pool; default: the only one.")
@click.option("--arch", default=None, help="Boot a guest of this architecture for the command.")
@click.option("--share", metavar="DIR", help="With --arch: the folder mounted at /work.")
@click.option("--root", metavar="DIR", help="Folder in the guest to chroot to.")
@click.option("--cwd", metavar="DIR", help="Working directory in the guest, within --root.")
@click.option("--env", multiple=True, metavar="K=V", help="A variable; may be repeated.")
@click.option("--user", default="0:0", metavar="UID:GID", show_default=True)
@click.option("--timeout", type=float, metavar="S", help="Kill the command after so long.")
@click.option("--idle-timeout", type=float, metavar="S", help="... after so long without output.")
@click.option("--lease-timeout", type=float, metavar="S", help="How long to wait for a guest.")
@click.option("--security-model", type=click.Choice(["mapped-file", "mapped-xattr"]), default=None)
@click.option("--fresh", is_flag=True, help="With --name: a guest that nobody has used yet.")
@click.option("--result", metavar="FILE", help="Write how it ended to FILE, as JSON.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(name: str | None, command: tuple[str, ...], result: str | None, **options: Any) -> int:
    """Run a command in a guest, and exit with its status.

    127: not found, 126: not executable, 128+N: ended by signal N, 124: time-out, 125: guestctl
    itself failed.

    \b
    Example:
      guestctl run --timeout 60 -- sh -c 'uname -m; id -u'
      guestctl run --arch armv5l --share ./tree -- make -C /work
    """
    argv = tuple(os.fsencode(word) for word in command)
    # Before any guest is started for nothing.
    options["env"] = _environment(options["env"])
    options["user"] = _user(options["user"])
    try:
        made = _run(name, command, options)
    except KeyboardInterrupt:
        made = Result(argv, "signalled", 130, signal=2, error="interrupted")
    except UsageError:
        raise
    except GuestctlError as error:
        outcome: Outcome = "lost" if isinstance(error, GuestLost) else "error"
        made = Result(argv, outcome, STATUS_BROKEN, error=str(error))
        console = getattr(error, "console", "").strip().splitlines()[-20:]
        sys.stderr.write("".join(f"console: {line}\n" for line in console))
        sys.stderr.write(f"guestctl: {error}\n")
        sys.stderr.write(f"hint: {error.hint}\n" if error.hint else "")
    else:
        if made.error:
            sys.stderr.write(f"guestctl: {made.describe()}\n")
    if result:
        with open(result, "w", encoding="utf-8") as file:
            json.dump(made.as_json(), file, indent=2)
            file.write("\n")
    return made.status


def _run(name: str | None, command: tuple[str, ...], options: dict[str, Any]) -> Result:
    from guestctl.places import Places
    from guestctl.pool import Pool, only_pool

    places = Places.of_user()
    if options["arch"] is None:
        for option in ("share", "security_model"):
            if options[option] is not None:
                raise UsageError(
                    f"--{option.replace('_', '-')} needs --arch",
                    hint="a pool's shares are set by `guestctl pool up`",
                )
        pool = Pool.attach(name or only_pool(places), places=places)
        with pool.lease(options["lease_timeout"], fresh=options["fresh"]) as guest:
            return _in_guest(guest, command, options, at_share=pool.options.share is not None)
    if name is not None:
        raise UsageError("--name and --arch exclude each other")
    model = options["security_model"] or "mapped-file"
    share = options["share"]
    with (
        Pool(
            options["arch"], 1, places=places, share=share, security_model=model, single=True
        ) as pool,
        pool.lease(options["lease_timeout"]) as guest,
    ):
        return _in_guest(guest, command, options, at_share=share is not None)


def _in_guest(
    guest: Guest, command: tuple[str, ...], options: dict[str, Any], *, at_share: bool
) -> Result:
    cwd = options["cwd"] or ("/work" if at_share and options["root"] is None else "/")
    with guest.mounted():
        return guest.run(
            command,
            root=options["root"],
            cwd=cwd,
            env=options["env"],
            user=options["user"],
            stdin=_stdin(),
            stdout=_Stream(sys.stdout.fileno()),
            stderr=_Stream(sys.stderr.fileno()),
            timeout=options["timeout"],
            idle_timeout=options["idle_timeout"],
        )


def _environment(variables: tuple[str, ...]) -> dict[str, str]:
    """`--env K=V` as a table; `--env K` alone takes the caller's value."""
    made = {}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if not name:
            raise UsageError(f"--env takes K=V, not {variable!r}")
        made[name] = value if equals else os.environ.get(name, "")
    return made


def _user(text: str) -> tuple[int, int]:
    uid, colon, gid = text.partition(":")
    if not uid.isdigit() or not (gid.isdigit() or not colon):
        raise UsageError(f"--user takes UID:GID as numbers, not {text!r}")
    return int(uid), int(gid) if colon else int(uid)


def _stdin() -> BinaryIO | None:
    """Ours, unless reading it would stop us: a terminal that another process group has."""
    if sys.stdin is None or sys.stdin.closed:
        return None
    handle = sys.stdin.fileno()
    if os.isatty(handle) and os.tcgetpgrp(handle) != os.getpgrp():
        return None
    return sys.stdin.buffer


class _Stream:
    """Unbuffered: what the command writes is seen at once, and never twice."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def write(self, data: bytes, /) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._handle, view) :]
