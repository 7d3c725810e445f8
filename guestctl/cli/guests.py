"""Which guest a command line wants, and how commands start in it: shared by `run` and `shell`."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from guestctl.errors import UsageError

if TYPE_CHECKING:
    from guestctl.guest import Guest
    from guestctl.pool import Pool
    from guestctl.process import Process

__all__ = ["Place", "guest_options", "leased", "start", "the_pool", "wait"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--name", default=None, metavar="POOL", help="The pool; default: the only one."),
    click.option("--arch", default=None, help="Boot a guest of this architecture for it."),
    click.option("--share", metavar="DIR", help="With --arch: the folder mounted at /work."),
    click.option("--root", metavar="DIR", help="Folder in the guest to chroot to."),
    click.option("--cwd", metavar="DIR", help="Working directory in the guest, within --root."),
    click.option("--env", multiple=True, metavar="K=V", help="A variable; may be repeated."),
    click.option("--user", default="0:0", metavar="UID:GID", show_default=True),
    click.option("--lease-timeout", type=float, metavar="S", help="How long to wait for a guest."),
    click.option(
        "--orphan-timeout",
        type=float,
        default=60.0,
        show_default=True,
        metavar="S",
        help="How long it lives on when guestctl is killed, or detached.",
    ),
    click.option(
        "--security-model", type=click.Choice(["mapped-file", "mapped-xattr"]), default=None
    ),
    click.option("--fresh", is_flag=True, help="With --name: a guest that nobody has used yet."),
)


def guest_options(command: _Command) -> _Command:
    """Adds the options that say which guest, and where in it."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass
class Place:
    """A leased guest. `own`: it was made for this command; `keep`: it shall stay all the same."""

    pool: Pool
    guest: Guest
    at_share: bool
    own: bool = False
    keep: bool = False

    def mounted(self) -> AbstractContextManager[None]:
        """Its share is at /work meanwhile; a board has none, and runs commands all the same."""
        return nullcontext() if self.guest.board else self.guest.mounted()


def the_pool(name: str | None) -> Pool:
    """The pool of that name, or the only one there is; raises PoolError."""
    from guestctl.places import Places
    from guestctl.pool import Pool, only_pool

    places = Places.of_user()
    return Pool.attach(
        name or only_pool(places, to_lease=True),
        places=places,
        progress=lambda text: sys.stderr.write(f"guestctl: {text}\n"),
    )


@contextmanager
def leased(options: dict[str, Any]) -> Iterator[Place]:
    """A guest of a pool, or one that lives as long as this lasts."""
    orphan = options["orphan_timeout"]
    if options["arch"] is None:
        for option in ("share", "security_model", "keep_failed"):
            if options.get(option):
                raise UsageError(
                    f"--{option.replace('_', '-')} needs --arch",
                    hint="a pool's guests and shares are set by `guestctl pool up`",
                )
        pool = the_pool(options["name"])
        with pool.lease(options["lease_timeout"], fresh=options["fresh"], orphan=orphan) as guest:
            yield Place(pool, guest, pool.options.share is not None and not guest.board)
        return
    if options["name"] is not None:
        raise UsageError("--name and --arch exclude each other")
    pool = _own_pool(options)
    place = None
    try:
        with pool.lease(options["lease_timeout"], orphan=orphan) as guest:
            place = Place(pool, guest, options["share"] is not None, own=True)
            yield place
    finally:
        if place is None or not place.keep:
            pool.down()


def _own_pool(options: dict[str, Any]) -> Pool:
    """A pool of one guest; with a name, so that it outlives us, only where it may be kept."""
    from guestctl.plan import NOT_OFFLOADED
    from guestctl.pool import Pool

    name = f"kept-{os.urandom(3).hex()}" if options.get("keep_failed") else None
    model = options["security_model"] or "mapped-file"
    share = options["share"]
    pool = Pool(
        options["arch"],
        1,
        name=name,
        share=share,
        security_model=model,
        single=True,
        forks=True,
        # What a bundle asks for; nobody else does.
        image=options.get("image", ""),
        memory=options.get("memory"),
        offload=options.get("offload", "auto"),
    )
    for remark in pool.remarks():
        if remark.startswith(NOT_OFFLOADED):
            # A build would be slow, and nothing else would tell why.
            sys.stderr.write(f"guestctl: {remark}\n")
    return pool


def start(
    place: Place, command: tuple[str, ...], options: dict[str, Any], *, tty: bool, **limits: Any
) -> Process:
    """Starts a command where the options want it; `wait` then passes our stdin on."""
    from guestctl.cli.terminal import Terminal
    from guestctl.process import PIPE

    at_work = place.at_share and options["root"] is None
    env = environment(options["env"])
    if tty and "TERM" in os.environ:
        env = {"TERM": os.environ["TERM"], **env}
    return place.guest.start(
        command,
        root=options["root"],
        cwd=options["cwd"] or ("/work" if at_work else "/"),
        env=env,
        user=user(options["user"]),
        stdin=PIPE,
        stdout=Stream(sys.stdout.fileno()),
        stderr=Stream(sys.stderr.fileno()),
        tty=tty,
        window=Terminal.size() if tty else None,
        **limits,
    )


def wait(process: Process, *, terminal: bool, detachable: bool) -> Any:
    """Its result. Our stdin is the command's meanwhile, and with `terminal` all of our terminal."""
    if not terminal:
        stdin = own_stdin()
        process.feed(stdin)
        try:
            return process.wait()
        finally:
            if stdin is not None:
                stdin.stop()
    from guestctl.cli.terminal import Terminal

    with Terminal() as ours:
        ours.drive(process, detachable=detachable)
        return process.wait()


def environment(variables: tuple[str, ...]) -> dict[str, str]:
    """`--env K=V` as a table; `--env K` alone takes the caller's value."""
    made = {}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if not name:
            raise UsageError(f"--env takes K=V, not {variable!r}", hint="as in --env CFLAGS=-O1")
        made[name] = value if equals else os.environ.get(name, "")
    return made


def user(text: str) -> tuple[int, int]:
    """`--user UID:GID` as numbers; one alone stands for both."""
    uid, colon, gid = text.partition(":")
    if not uid.isdigit() or not (gid.isdigit() or not colon):
        raise UsageError(
            f"--user takes UID:GID as numbers, not {text!r}", hint="as in --user 1000:1000"
        )
    return int(uid), int(gid) if colon else int(uid)


class OwnStdin:
    """Our stdin for one command: nothing is read ahead, and reading ends when the command has.

    Python's own would be locked by the thread that reads it, which the interpreter does not survive
    at its end; and what is typed next is for somebody else.
    """

    def __init__(self) -> None:
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)

    def read(self, size: int) -> bytes:
        """What there is; empty at the end of file, or after `stop`."""
        handle = sys.stdin.fileno()
        ready, _, _ = select.select([handle, self._stop_read], [], [])
        return b"" if self._stop_read in ready else os.read(handle, size)

    def stop(self) -> None:
        os.write(self._stop_write, b"q")


def own_stdin() -> OwnStdin | None:
    """Ours, unless reading it would stop us: a terminal that another process group has."""
    if sys.stdin is None or sys.stdin.closed:
        return None
    handle = sys.stdin.fileno()
    if os.isatty(handle) and os.tcgetpgrp(handle) != os.getpgrp():
        return None
    return OwnStdin()


class Stream:
    """Unbuffered: what the command writes is seen at once, and never twice."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def write(self, data: bytes, /) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._handle, view) :]
