"""`guestctl bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from guestctl.cli.output import json_option, print_json

if TYPE_CHECKING:
    from guestctl.soak import Report

__all__ = ["group"]


@click.group()
def group() -> None:
    """Put this host and its guests under load, and see what holds.

    \b
    Example:
      guestctl bench soak --arch armv5l --guests 2 --seconds 60
    """


@group.command()
@click.option("--arch", required=True, help="The guests' architecture, such as armv5l.")
@click.option("--guests", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "--workers", type=click.IntRange(1), default=3, show_default=True, help="Jobs at a time."
)
@click.option("--jobs", type=int, default=0, metavar="N", help="End after so many jobs.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="... after so long.")
@click.option(
    "--every",
    type=float,
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="The mean time between two things that go wrong; 0: nothing does, but what jobs do.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Which jobs, and which faults."
)
@json_option
def soak(as_json: bool, **options: Any) -> int:
    """Run jobs in a pool while guests, supervisors and callers are killed at random.

    Every job has an outcome that is known beforehand. Exit status 1: a job never came to it, or
    one said so falsely, or something was left behind.

    \b
    Example:
      guestctl bench soak --arch armv5l --guests 4 --seconds 300 --seed 7
    """
    from guestctl.soak import Soak, SoakOptions

    made = Soak(
        SoakOptions(**options), progress=lambda text: click.echo(f"guestctl: {text}", err=True)
    ).run()
    if as_json:
        print_json(made.as_json())
    else:
        _show(made)
    return 0 if made.good else 1


def _show(made: Report) -> None:
    facts = made.as_json()
    click.echo(f"seed {facts['seed']}, {facts['guests']} guests, {facts['seconds']} s")
    click.echo(f"jobs                {facts['jobs']} ({facts['jobs_per_second']} a second)")
    click.echo(f"lease, p50 and p99  {facts['lease_p50']} {facts['lease_p99']} s")
    click.echo(f"run, p50 and p99    {facts['run_p50']} {facts['run_p99']} s")
    click.echo(f"guests lost         {facts['guests_lost']}, replaced {facts['guests_replaced']}")
    for title, key in (("done", "kinds"), ("struck", "mischief"), ("causes", "causes")):
        click.echo(f"{title}: " + ", ".join(f"{name} {n}" for name, n in facts[key].items()))
    for title, key in (
        ("jobs lost", "jobs_lost"),
        ("falsely successful", "falsely_successful"),
        ("leaks", "leaks"),
    ):
        click.echo(f"{title}: {len(facts[key])}")
        for line in facts[key]:
            click.echo(f"  {line}")
