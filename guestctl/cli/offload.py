"""`guestctl offload`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from guestctl.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from guestctl.offload import Build, Summary

__all__ = ["group"]


@click.group()
def group() -> None:
    """Look at what the host has compiled for its guests, and who helps it.

    \b
    Example:
      guestctl offload report
      guestctl offload hosts add buildbox:3632/8,lzo
    """


@group.command()
@click.option("--name", default=None, metavar="POOL", help="The pool; default: the only one.")
@click.argument("ledger", required=False)
@json_option
def report(name: str | None, ledger: str | None, as_json: bool) -> None:
    """Sum a ledger up: what ran on the host, what in the guest, and why; then build by build.

    A build is a command whose calls are in the ledger. Its seconds are split: configure is what
    configure scripts try, and the time between two tries; compile and link is waiting for these;
    9p is writing their files to the share; other is all the rest, such as make and shells.

    LEDGER is a ledger's file; without it, that of a pool, which is there after the pool has gone
    until another of its name comes up.

    \b
    Example:
      guestctl offload report --name demo --json
    """
    from pathlib import Path

    from guestctl.errors import UsageError
    from guestctl.offload import builds_of, read_jobs, read_ledger, summarize
    from guestctl.places import Places
    from guestctl.plan import ledger_path
    from guestctl.pool import only_pool

    if ledger is not None and name is not None:
        raise UsageError("--name and a ledger exclude each other")
    places = Places.of_user()
    path = Path(ledger) if ledger else ledger_path(places, name or only_pool(places))
    entries = read_ledger(path)
    summary, builds = summarize(entries), builds_of(entries, read_jobs(path))
    if as_json:
        rows = [build.as_json() for build in builds]
        print_json({"ledger": str(path), **summary.as_json(), "builds": rows})
        return
    _print(summary)
    _print_builds(builds)


def _print(summary: Summary) -> None:
    where = summary.where
    click.echo(
        f"{summary.calls} calls: {where['offload']} on the host, {where['distcc']} by distcc,"
        f" {where['guest']} in the guest ({summary.percent_accelerated:.1f} % accelerated)"
    )
    for machine, calls in summary.compile_hosts.items():
        click.echo(f"{calls} of them compiled by {machine}")
    click.echo(f"about {summary.saved:.0f} s saved")
    click.echo(f"{summary.read:,} bytes sent by guests, {summary.written:,} bytes sent to them\n")
    print_table(
        ("STEP", "CALLS", "IN GUEST", "SECONDS", "TOOLS", "SLOTS", "TRANSFER", "9P"),
        (
            (
                step,
                row["calls"],
                row["local"],
                f"{row['seconds']:.2f}",
                f"{row['host']:.2f}",
                f"{row['waited']:.2f}",
                f"{row['transfer']:.2f}",
                f"{row['share']:.2f}",
            )
            for step, row in summary.steps.items()
        ),
    )
    if summary.reasons:
        click.echo("")
        print_table(("CALLS", "IN THE GUEST BECAUSE"), ((n, text) for text, n in summary.reasons))


def _print_builds(builds: Sequence[Build]) -> None:
    if not builds:
        return
    from guestctl.offload import PARTS

    click.echo("")
    print_table(
        ("BUILD", "SECONDS", "CALLS", "IN GUEST", *(part.upper() for part in PARTS), "COMMAND"),
        (
            (
                build.name,
                f"{build.seconds:.1f}",
                build.calls,
                build.local,
                *(f"{build.parts[part]:.1f}" for part in PARTS),
                " ".join(build.command)[:40],
            )
            for build in builds
        ),
    )


@group.group(invoke_without_command=True)
@click.pass_context
@json_option
def hosts(context: click.Context, as_json: bool) -> None:
    """List further compile hosts: machines with distccd that compile what this one has no slot for.

    HOST is HOST[:PORT][/LIMIT][,lzo], as distcc has it. `compile_hosts:` in the config lists those
    that are always there; what is changed here holds until the user's run directory is gone. Builds
    that run take notice at once.

    \b
    Example:
      guestctl offload hosts
      guestctl offload hosts add buildbox/8
      guestctl offload hosts drain buildbox
    """
    if context.invoked_subcommand is not None:
        return
    from guestctl.offload import host_rows
    from guestctl.places import Places

    rows = host_rows(Places.of_user())
    if as_json:
        print_json({"hosts": rows})
        return
    print_table(
        ("HOST", "STATE", "FROM", "BUSY", "LIMIT", "LAST WORD"),
        (
            (row["host"], row["state"], row["origin"], row["busy"], row["limit"],
             f"{row['verdict']} {row['why']}".strip())
            for row in rows
        ),
    )  # fmt: skip


@hosts.command()
@click.argument("host")
def add(host: str) -> None:
    """Add HOST, or take a drained one up again.

    Its compilers are compared with the installed toolchains before: a host that does not answer, or
    has none that is the same as one of ours, is not added.

    \b
    Example:
      guestctl offload hosts add buildbox:3632/8,lzo
    """
    from guestctl.offload import HostBook, check_host, parse_host
    from guestctl.places import Places

    places = Places.of_user()
    asked = parse_host(host)
    for line in check_host(asked, places):
        click.echo(line)
    HostBook(places.config, places.runtime).add(asked)


@hosts.command()
@click.argument("host")
def drain(host: str) -> None:
    """Give HOST no more compilations; those that it has end there.

    \b
    Example:
      guestctl offload hosts drain buildbox
    """
    _change("drain", host)


@hosts.command()
@click.argument("host")
def remove(host: str) -> None:
    """Drain HOST, and list it no longer.

    \b
    Example:
      guestctl offload hosts remove buildbox
    """
    _change("remove", host)


def _change(what: str, host: str) -> None:
    from guestctl.offload import HostBook, parse_host
    from guestctl.places import Places

    places = Places.of_user()
    book = HostBook(places.config, places.runtime)
    getattr(book, what)(parse_host(host))
