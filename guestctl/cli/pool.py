"""`guestctl pool`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from guestctl.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from guestctl.plan import PoolOptions

__all__ = ["group"]

_name = click.option("--name", default=None, help="The pool; default: the only one.")


@click.group()
def group() -> None:
    """Bring pools of guests up, look at them, take them down.

    \b
    Example:
      guestctl pool up -n 4 --arch armv5l
      guestctl pool status
      guestctl pool down
    """


@group.command()
@click.option("-n", "size", type=int, default=1, show_default=True, help="How many guests.")
@click.option("--arch", required=True, help="Their architecture, such as armv5l.")
@click.option("--name", default="default", show_default=True, help="What to call the pool.")
@click.option("--share", metavar="PARENT", help="A folder that holds (or gets) one tree a guest.")
@click.option("--memory", type=int, metavar="MIB", help="Memory of each guest.")
@click.option(
    "--scratch",
    type=int,
    default=16384,
    show_default=True,
    metavar="MIB",
    help="Size of each guest's scratch disk, which holds all that it writes outside its share.",
)
@click.option(
    "--security-model",
    type=click.Choice(["mapped-file", "mapped-xattr"]),
    default="mapped-file",
    show_default=True,
    help="How owners and modes are kept in the shares.",
)
@click.option(
    "--channel",
    metavar="virtio|tcp|serial|serial:DEV[@RATE]",
    default="virtio",
    show_default=True,
    help="How the agent's bytes travel: a virtio port, a network that reaches nothing else, or "
    "the second serial line of QEMU's board (slow). With a serial device of this host, the pool is "
    "the machine at its other end.",
)
@click.option(
    "--network",
    type=click.Choice(["none", "user"]),
    default="none",
    show_default=True,
    help="Whether the guests have a network device.",
)
@click.option(
    "--offload",
    type=click.Choice(["auto", "distcc", "off"]),
    default="auto",
    show_default=True,
    help="Whether the host compiles for the guests.",
)
@click.option(
    "--member",
    "members",
    multiple=True,
    metavar="HOST[:PORT]|serial:DEV[@RATE]",
    help="A board that belongs to the pool as well; may be given again. It has no share.",
)
@click.option("--key", default="", metavar="FILE", help="The boards' key: guestctl agent key.")
@click.option("--boot-timeout", type=float, default=120.0, show_default=True, metavar="SECONDS")
@click.option("--cold", is_flag=True, help="Boot the guests instead of cloning a template.")
@click.option(
    "--spares",
    type=int,
    metavar="N",
    help="How many guests that nobody has used are kept ready for fresh leases, beyond -n where "
    "need be. Default: one, from the first fresh lease on; none with --share.",
)
@click.option("--print-qemu", is_flag=True, help="Print QEMU's command line, and do nothing.")
def up(
    size: int,
    arch: str,
    name: str,
    share: str | None,
    memory: int | None,
    scratch: int,
    security_model: str,
    channel: str,
    network: str,
    offload: str,
    members: tuple[str, ...],
    key: str,
    boot_timeout: float,
    cold: bool,
    spares: int | None,
    print_qemu: bool,
) -> None:
    """Bring a pool up. It stays up when the command returns.

    \b
    Example:
      guestctl pool up -n 4 --arch armv5l --share /var/tmp/trees
      guestctl pool up --arch armv5l --channel serial:/dev/ttyUSB0@115200
    """
    import time

    from guestctl.plan import PoolOptions
    from guestctl.pool import Pool

    options: dict[str, Any] = {
        "share": share,
        "memory": memory,
        "scratch": scratch,
        "security_model": security_model,
        "channel": channel,
        "members": members,
        "key": key,
        "network": network == "user",
        "offload": offload,
        "boot_timeout": boot_timeout,
        "cold": cold,
        "spares": spares,
    }
    if print_qemu:
        _print_qemu(PoolOptions(arch, size, **options), name)
        return
    begin = time.monotonic()
    pool = Pool(
        arch,
        size,
        name=name,
        progress=lambda text: click.echo(text, err=True),
        forks=True,
        **options,
    )
    seconds = time.monotonic() - begin
    click.echo(f"pool {pool.name}: {size} {arch} guests ready in {seconds:.2f} s")
    for line in pool.remarks():
        click.echo(f"note: {line}", err=True)


def _print_qemu(options: PoolOptions, name: str) -> None:
    """The command line of each guest; descriptors that are made at the start are numbered 3 on."""
    import shlex

    from guestctl.places import Places
    from guestctl.plan import plan_pool
    from guestctl.qemu.confine import Confinement
    from guestctl.qemu.machine import DESCRIPTORS, Machine
    from guestctl.qemu.spawn import command_line

    numbers = {what: number for number, what in enumerate(DESCRIPTORS, start=3)}
    for spec in plan_pool(options, name, Places.of_user()).guests:
        if spec.member:
            continue
        argv = command_line(Machine.of(spec), Confinement(spec.namespaces), numbers, 7)
        click.echo(shlex.join(argv))


@group.command()
@_name
@json_option
@click.option("--watch", "watching", is_flag=True, help="Follow what the guests do; Ctrl-C ends.")
@click.option(
    "--interval", type=float, default=1.0, show_default=True, metavar="S", help="With --watch."
)
def status(name: str | None, as_json: bool, watching: bool, interval: float) -> None:
    """Show the guests of a pool.

    FRESH are those that nobody has used since they came: a fresh lease gets one of them at once.
    A guest whose guestctl has died is `orphaned` as long as its job lives; `run --attach` takes the
    job over.

    \b
    Example:
      guestctl pool status --json
      guestctl pool status --watch
    """
    from guestctl.places import Places
    from guestctl.pool import Pool, only_pool

    pool = Pool.attach(name or only_pool(Places.of_user()))
    if watching:
        from guestctl.cli.watch import watch

        watch(pool, interval)
        return
    guests = pool.status()
    if as_json:
        print_json({"name": pool.name, "guests": guests, "spares": pool.spares()})
        return
    print_table(
        (
            *("GUEST", "STATE", "FRESH", "JOB", "START", "ARCH", "QEMU", "LEASE", "ACCEL"),
            *("CONFINED", "OFFLOAD", "CAUSE"),
        ),
        (
            (
                guest["name"],
                guest["state"],
                "yes" if guest["fresh"] else "-",
                guest["job"] or "-",
                guest["start"] or "-",
                guest["arch"] or "-",
                guest["qemu_pid"] or "-",
                guest["lease"] or "-",
                guest["accelerator"] or "-",
                _confined(guest["confinement"]),
                guest["offload"] or "-",
                guest["cause"],
            )
            for guest in guests
        ),
    )
    for line in [*pool.remarks(), *_cold(guests)]:
        click.echo(f"note: {line}", err=True)
    for guest in guests:
        if guest["state"] == "orphaned":
            click.echo(
                f"hint: guestctl run --name {pool.name} --attach {guest['job']} takes it over",
                err=True,
            )


@group.command()
@_name
@click.option("--follow", is_flag=True, help="Go on until the pool is down, or Ctrl-C.")
def events(name: str | None, follow: bool) -> None:
    """Print what has happened in a pool, one line of JSON an event.

    boot, ready, lease, release, run, exit, orphan, attach, expired, replace, spare, lost, stopped;
    each with its time in seconds since the epoch.

    \b
    Example:
      guestctl pool events --follow
    """
    import json

    from guestctl import journal
    from guestctl.places import Places
    from guestctl.pool import Pool, only_pool

    pool = Pool.attach(name or only_pool(Places.of_user()))
    try:
        for event in (journal.follow if follow else journal.read)(pool.journal):
            click.echo(json.dumps(event))
    except KeyboardInterrupt:
        return


def _cold(guests: list[dict[str, Any]]) -> list[str]:
    """Why guests have booted that might have been cloned."""
    return [
        f"{guest['name']} is no clone: {guest['start_reason']}"
        for guest in guests
        if guest["start_reason"]
    ]


def _confined(facts: dict[str, object] | None) -> str:
    if not facts:
        return "-"
    active = [name for name in ("seccomp", "namespaces") if facts[name]]
    return "+".join(active) or "no"


@group.command(name="list")
@json_option
def list_(as_json: bool) -> None:
    """List the pools of this user.

    \b
    Example:
      guestctl pool list
    """
    import contextlib

    from guestctl.errors import PoolError
    from guestctl.places import Places
    from guestctl.pool import Pool
    from guestctl.rundir import pool_names

    pools = []
    for name in pool_names(Places.of_user().runtime):
        # One that somebody takes down meanwhile is not in the list any more.
        with contextlib.suppress(PoolError):
            pools.append(Pool.attach(name))
    if as_json:
        print_json({"pools": [{"name": pool.name, "guests": pool.status()} for pool in pools]})
        return
    print_table(
        ("POOL", "ARCH", "GUESTS", "READY"),
        (
            (
                pool.name,
                pool.options.arch,
                pool.options.size,
                sum(guest["state"] in ("ready", "leased") for guest in pool.status()),
            )
            for pool in pools
        ),
    )


@group.command()
@_name
def down(name: str | None) -> None:
    """Take a pool down; nothing of it is left.

    \b
    Example:
      guestctl pool down --name default
    """
    from guestctl.places import Places
    from guestctl.pool import Pool, only_pool

    pool = Pool.attach(name or only_pool(Places.of_user()))
    pool.down()
    click.echo(f"pool {pool.name} is down")
