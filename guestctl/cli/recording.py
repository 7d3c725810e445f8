"""`guestctl run --bundle` and `--from`: a command is recorded, or one that was is run again."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guestctl.cli.guests import environment
from guestctl.errors import GuestctlError, GuestLost, UsageError
from guestctl.spec import STATUS_BROKEN, Result

if TYPE_CHECKING:
    from guestctl.cli.guests import Place

__all__ = ["Tape", "compare", "recorded", "repeated"]


class Tape:
    """Where a command's result is left for the bundle."""

    result: Result | None = None


@contextmanager
def recorded(place: Place, command: tuple[str, ...], options: dict[str, Any]) -> Iterator[Tape]:
    """Records what is run meanwhile, if it is to be: however it ends, guests that die included."""
    tape = Tape()
    if not options["bundle"]:
        yield tape
        return
    from guestctl import image
    from guestctl.places import Places
    from guestctl.plan import ledger_path
    from guestctl.reproduction import Order, Recording

    places = Places.of_user()
    pool, guest = place.pool, place.guest
    made = image.find(guest.arch, pool.image, cache_dir=places.cache)
    at_work = place.at_share and options["root"] is None
    order = Order(
        arch=guest.arch,
        image=made.id,
        argv=command,
        env=environment(options["env"]),
        cwd=options["cwd"] or ("/work" if at_work else "/"),
        root=options["root"],
        user=options["user"],
        timeout=options["timeout"],
        idle_timeout=options["idle_timeout"],
        security_model=pool.options.security_model,
        memory=pool.options.memory or 0,
        offload=pool.options.offload,
    )
    recording = Recording(Path(options["bundle"]), order, made, guest.work)
    try:
        try:
            yield tape
        except GuestctlError as error:
            outcome = "lost" if isinstance(error, GuestLost) else "error"
            argv = tuple(word.encode(errors="surrogateescape") for word in command)
            tape.result = Result(
                argv,
                outcome,  # type: ignore[arg-type]
                STATUS_BROKEN,
                guest=guest.name,
                error=str(error),
            )
            raise
        finally:
            if tape.result is not None:
                ledger = ledger_path(places, pool.name)
                recording.write(tape.result, pool.guest_folder(guest.name), ledger)
    finally:
        recording.close()


@contextmanager
def repeated(
    command: tuple[str, ...], options: dict[str, Any]
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The command and the options of a bundle, its share unpacked into a folder for as long as this
    lasts, or into that of `--share`. A command that is given takes the place of the recorded one.
    """
    bundle = options["from_"]
    if not bundle:
        yield command, options
        return
    from guestctl import image
    from guestctl.places import Places
    from guestctl.reproduction import read_order, unpack_share

    if options["name"] or options["arch"]:
        raise UsageError("--from takes neither --name nor --arch: the bundle says what it needs")
    order, _result = read_order(Path(bundle))
    places = Places.of_user()
    image.find(order.arch, order.image, cache_dir=places.cache)
    with _folder(options["share"], places.cache) as tree:
        unpack_share(Path(bundle), tree, order.security_model)
        changed = {
            "arch": order.arch,
            "image": order.image,
            "memory": order.memory or None,
            "offload": order.offload,
            "share": str(tree),
            "security_model": order.security_model,
            "root": order.root,
            "cwd": order.cwd,
            "user": order.user,
            "env": tuple(f"{name}={value}" for name, value in order.env.items()) + options["env"],
            "timeout": options["timeout"] or order.timeout,
            "idle_timeout": options["idle_timeout"] or order.idle_timeout,
        }
        yield command or order.argv, {**options, **changed}


def compare(bundle: str, command: tuple[str, ...], made: Result) -> None:
    """Says where a recorded command has ended otherwise than it did when it was recorded."""
    from guestctl.reproduction import read_order

    order, before = read_order(Path(bundle))
    if command and command != order.argv:
        return
    then = (before.get("outcome"), before.get("status"))
    if then != (made.outcome, made.status):
        sys.stderr.write(
            f"guestctl: when it was recorded it ended otherwise: {then[0]}, status {then[1]}\n"
        )


@contextmanager
def _folder(share: str | None, cache: Path) -> Iterator[Path]:
    if share is not None:
        tree = Path(share)
        if tree.exists() and any(tree.iterdir()):
            raise UsageError(f"the share {tree} is not empty", hint="give --from an empty folder")
        yield tree
        return
    (cache / "shares").mkdir(mode=0o700, parents=True, exist_ok=True)
    tree = Path(tempfile.mkdtemp(prefix="from-", dir=cache / "shares"))
    try:
        yield tree
    finally:
        shutil.rmtree(tree, ignore_errors=True)
