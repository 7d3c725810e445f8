"""`guestctl shell`."""

from __future__ import annotations

import sys
from typing import Any

import click

from guestctl.cli.guests import guest_options, leased, start, wait
from guestctl.cli.run import SHELL
from guestctl.cli.terminal import require_terminal
from guestctl.errors import Detached

__all__ = ["shell"]


@click.command()
@guest_options
def shell(**options: Any) -> int:
    """Open a shell in a guest, in this terminal.

    Ctrl-] d detaches from a shell in a pool: it goes on, and `run --attach` takes it up again.
    Ctrl-] Ctrl-] types one Ctrl-]. Everything else is the guest's, Ctrl-C and Ctrl-Z too.

    \b
    Example:
      guestctl shell
      guestctl shell --arch armv5l --share ./tree
      guestctl shell --name builders --root /work --cwd /build
    """
    require_terminal("shell")
    with leased(options) as place, place.mounted():
        process = start(place, SHELL, options, tty=True)
        try:
            made = wait(process, terminal=True, detachable=not place.own)
        except Detached:
            sys.stderr.write(
                f"\r\nguestctl: detached from job {process.name}\nhint: guestctl run --name"
                f" {place.pool.name} --attach {process.name} takes it up again, within"
                f" {options['orphan_timeout']:g} s\n"
            )
            return 0
    return int(made.status)
