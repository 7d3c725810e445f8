"""`guestctl offload`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from guestctl.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from guestctl.offload import Summary

__all__ = ["group"]


@click.group()
def group() -> None:
    """Look at what the host has compiled for its guests.

    \b
    Example:
      guestctl offload report
    """


@group.command()
@click.option("--name", default=None, metavar="POOL", help="The pool; default: the only one.")
@click.argument("ledger", required=False)
@json_option
def report(name: str | None, ledger: str | None, as_json: bool) -> None:
    """Sum a ledger up: what ran on the host, what in the guest, and why.

    LEDGER is a ledger's file; without it, that of a pool, which is there after the pool has gone
    until another of its name comes up.

    \b
    Example:
      guestctl offload report --name demo --json
    """
    from pathlib import Path

    from guestctl.errors import UsageError
    from guestctl.offload import read_ledger, summarize
    from guestctl.places import Places
    from guestctl.plan import ledger_path
    from guestctl.pool import only_pool

    if ledger is not None and name is not None:
        raise UsageError("--name and a ledger exclude each other")
    places = Places.of_user()
    path = Path(ledger) if ledger else ledger_path(places, name or only_pool(places))
    summary = summarize(read_ledger(path))
    if as_json:
        print_json({"ledger": str(path), **summary.as_json()})
        return
    _print(summary)


def _print(summary: Summary) -> None:
    where = summary.where
    click.echo(
        f"{summary.calls} calls: {where['offload']} on the host, {where['distcc']} by distcc,"
        f" {where['guest']} in the guest ({summary.percent_accelerated:.1f} % accelerated)"
    )
    click.echo(f"about {summary.saved:.0f} s saved")
    click.echo(f"{summary.read:,} bytes sent by guests, {summary.written:,} bytes sent to them\n")
    print_table(
        ("STEP", "CALLS", "IN GUEST", "SECONDS", "TOOLS", "SLOTS", "TRANSFER"),
        (
            (
                step,
                row["calls"],
                row["local"],
                f"{row['seconds']:.2f}",
                f"{row['host']:.2f}",
                f"{row['waited']:.2f}",
                f"{row['transfer']:.2f}",
            )
            for step, row in summary.steps.items()
        ),
    )
    if summary.reasons:
        click.echo("")
        print_table(("CALLS", "IN THE GUEST BECAUSE"), ((n, text) for text, n in summary.reasons))
