"""`guestctl cache`."""

from __future__ import annotations

import re
import time

import click

from guestctl.cli.output import json_option, print_json, print_table
from guestctl.errors import UsageError

__all__ = ["group"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@click.group()
def group() -> None:
    """Look at what guestctl keeps in its cache, and clear it.

    \b
    Example:
      guestctl cache show
      guestctl cache gc --keep-days 30 --max-size 20G
    """


@group.command()
@json_option
def show(as_json: bool) -> None:
    """Show what is in the cache, by kind.

    BUSY are those that pools which are up were made from; STALE are those that nobody will use
    again, such as templates of an earlier boot of the host.

    \b
    Example:
      guestctl cache show --json
    """
    from dataclasses import asdict

    from guestctl.caches import usage
    from guestctl.places import Places

    places = Places.of_user()
    found = usage(places)
    if as_json:
        kinds = {name: asdict(each) for name, each in found.items()}
        print_json({"cache": str(places.cache), "kinds": kinds})
        return
    print_table(
        ("KIND", "ITEMS", "MIB", "BUSY", "STALE", "OLDEST"),
        (
            (
                name,
                each.items,
                each.bytes >> 20,
                each.busy,
                each.stale,
                _when(each.oldest) if each.oldest else "-",
            )
            for name, each in found.items()
        ),
    )


@group.command()
@click.option(
    "--keep-days",
    type=click.FloatRange(0),
    metavar="N",
    help="Remove what was not used for so long.",
)
@click.option(
    "--max-size",
    metavar="SIZE",
    help="Then remove what was not used for longest, until so much is left: bytes, or 500M, 20G.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
def gc(keep_days: float | None, max_size: str | None, dry_run: bool, as_json: bool) -> None:
    """Remove what nobody will use again, and what you no longer want to keep.

    All of it can be made or fetched again. Pools may be up meanwhile: what they were made from
    stays, and so does what another guestctl is working on.

    \b
    Example:
      guestctl cache gc
      guestctl cache gc --keep-days 30
      guestctl cache gc --max-size 20G --dry-run
    """
    from guestctl.caches import collect
    from guestctl.places import Places

    size = None if max_size is None else _bytes(max_size)
    gone = collect(Places.of_user(), keep_days=keep_days, max_size=size, dry_run=dry_run)
    total = sum(freed for _item, freed in gone)
    if as_json:
        removed = [
            {"kind": item.kind, "name": item.name, "used": item.used, "bytes": freed}
            for item, freed in gone
        ]
        print_json({"dry_run": dry_run, "removed": removed, "bytes": total})
        return
    by_kind: dict[str, list[int]] = {}
    for item, freed in gone:
        by_kind.setdefault(item.kind, []).append(freed)
    print_table(
        ("KIND", "ITEMS", "MIB"),
        ((kind, len(sizes), sum(sizes) >> 20) for kind, sizes in by_kind.items()),
    )
    what = "would be removed" if dry_run else "removed"
    click.echo(f"{len(gone)} {what}, {total >> 20} MiB")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip().upper())
    if not match:
        raise UsageError(f"{text!r} is no size", hint="such as 500M or 20G")
    return int(float(match[1]) * _UNITS[match[2]])


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))
