"""`guestctl console`."""

from __future__ import annotations

import os
import select
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from guestctl.cli.guests import the_pool
from guestctl.errors import PoolError, UsageError

if TYPE_CHECKING:
    from guestctl.tail import Tail

__all__ = ["console"]

_LEAVE = 0x1D  # Ctrl-]
_SHOWN = 1 << 16
_POLL = 0.05


@click.command()
@click.argument("guest")
@click.option("--name", default=None, metavar="POOL", help="The pool; default: the only one.")
@click.option("--no-follow", is_flag=True, help="Show what there is, and end.")
def console(guest: str, name: str | None, no_follow: bool) -> int:
    """Show and follow the console of a guest's kernel, and type into it.

    It may be used while commands run in the guest. Ctrl-C and Ctrl-] leave it.

    \b
    Example:
      guestctl console g0
      guestctl console g1 --name builders --no-follow
    """
    from guestctl.cli.terminal import stdin_is_terminal
    from guestctl.sockets import connected_socket
    from guestctl.tail import Tail

    folder = the_pool(name).guest_folder(guest)
    with ExitStack() as stack:
        tail = stack.enter_context(Tail(folder.console, last=_SHOWN))
        if no_follow:
            _show(tail)
            return 0
        try:
            keyboard = stack.enter_context(connected_socket(folder.keyboard))
        except OSError:
            _show(tail)
            raise PoolError(f"guest {guest} is not running any more") from None
        if stdin_is_terminal():
            from guestctl.cli.terminal import Terminal

            sys.stderr.write("guestctl: the console of " + guest + "; Ctrl-C leaves it\n")
            stack.enter_context(Terminal(raw=False))
            # Wherever the cursor stands by then.
            stack.callback(sys.stderr.write, "\n")
        try:
            _follow(tail, keyboard)
        except KeyboardInterrupt:
            return 0
    return 0


def _follow(tail: Tail, keyboard: socket.socket) -> None:
    """Until the guest has ended, or the caller has had enough."""
    keys = -1 if sys.stdin is None else sys.stdin.fileno()
    listening = [keyboard.fileno(), *([keys] if keys >= 0 else [])]
    while True:
        ready, _, _ = select.select(listening, [], [], _POLL)
        if keyboard.fileno() in ready:
            # It never says anything: this is its end. The log has all that came before.
            _show(tail)
            return
        if keys in ready:
            data = os.read(keys, 4096)
            if _LEAVE in data and os.isatty(keys):
                return
            if not data:
                listening.remove(keys)
            else:
                _type(keyboard, data)
        _show(tail)


def _type(keyboard: socket.socket, data: bytes) -> None:
    try:
        keyboard.sendall(data)
    except TimeoutError:
        raise UsageError("the guest does not take what is typed into its console") from None
    except OSError:
        # It has ended; the next look at the socket says so.
        return


def _show(tail: Tail) -> None:
    while data := tail.read():
        view = memoryview(data)
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]
