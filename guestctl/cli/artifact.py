"""`guestctl artifact`: what was built, and its keeping."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from guestctl.cli.output import json_option, print_json, print_table
from guestctl.cli.settings import setting, whole_number

if TYPE_CHECKING:
    from guestctl.builder.store import Artifact, Store

__all__ = ["group"]


@click.group()
def group() -> None:
    """Look at the artifacts that were built, take them out, remove them.

    An artifact is named by its component, for the newest, or by the beginning of its key.

    \b
    Example:
      guestctl artifact list
    """


def _store() -> Store:
    from guestctl.builder.store import Store
    from guestctl.places import Places

    return Store(Places.of_user().data)


@group.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the artifacts, the last used first.

    \b
    Example:
      guestctl artifact list --json
    """
    found = _store().all()
    if as_json:
        print_json({"artifacts": [_row(each) for each in found]})
        return
    rows = [
        (each.name, each.manifest["arch"], each.key[:16], each.size >> 10, _when(each.used))
        for each in found
    ]
    print_table(("NAME", "ARCH", "KEY", "KIB", "USED"), rows)


@group.command()
@click.argument("artifact")
@json_option
def show(artifact: str, as_json: bool) -> None:
    """Show what ARTIFACT holds and what it was made from.

    \b
    Example:
      guestctl artifact show hello
    """
    found = _store().find(artifact)
    if as_json:
        print_json({**_row(found), "manifest": dict(found.manifest)})
        return
    facts = found.manifest
    click.echo(f"{found.name} {facts['arch']} {found.key}")
    click.echo(f"{found.tar}")
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in facts["seconds"].items())
    click.echo(f"built in {facts['guest']}: {steps}")
    calls, local = facts.get("ledger", {}), facts.get("local", {})
    if calls:
        click.echo("compiled: " + ", ".join(f"{where} {count}" for where, count in calls.items()))
    for reason, count in local.items():
        click.echo(f"in the guest: {count} × {reason}")
    if facts.get("parts"):
        click.echo(f"parts: {', '.join(facts['parts'])}")
    click.echo()
    rows = [
        (f["mode"], f"{f['uid']}:{f['gid']}", f.get("size", ""), f["path"], f.get("target", ""))
        for f in facts["files"]
    ]
    print_table(("MODE", "OWNER", "SIZE", "PATH", "TARGET"), rows)


@group.command()
@click.argument("artifact")
@click.argument("tree")
@click.option("--part", help="One of its parts only, such as hello-doc.")
def extract(artifact: str, tree: str, part: str | None) -> None:
    """Stage ARTIFACT into the virtfs tree TREE.

    \b
    Examples:
      guestctl artifact extract hello tree
      guestctl artifact extract zlib tree --part zlib-dev
    """
    from guestctl import stage
    from guestctl.errors import BuildError

    store = _store()
    found = store.get(store.find(artifact).key)
    if found is None:
        raise BuildError(f"{artifact}: the artifact was damaged, and is removed")
    report = stage(found.part(part) if part else found.tar, tree)
    for line in report.warnings:
        click.echo(f"warning: {line}", err=True)
    click.echo(f"{found.name}: {report.entries} entries")


@group.command()
@click.argument("artifact")
def remove(artifact: str) -> None:
    """Remove ARTIFACT. It is built again when it is needed.

    \b
    Example:
      guestctl artifact remove hello
    """
    store = _store()
    found = store.find(artifact)
    store.remove(found.key)
    click.echo(f"removed {found.name} {found.key[:16]}")


@group.command()
@click.option(
    "--max-bytes",
    type=click.IntRange(0),
    help="What may stay, in bytes.  [default: artifact-bytes of the configuration]",
)
def gc(max_bytes: int | None) -> None:
    """Remove what was not used for longest, until the rest is small enough.

    While something is built, what was used in the last day stays.

    \b
    Example:
      guestctl artifact gc --max-bytes 10000000000
    """
    bound = setting("artifact-bytes", whole_number) if max_bytes is None else max_bytes
    if bound is None:
        raise click.UsageError(
            "say how much may stay, with --max-bytes or artifact-bytes: in the configuration",
            click.get_current_context(),
        )
    for gone in _store().collect_garbage(bound):
        click.echo(f"removed {gone.name} {gone.key[:16]}")


def _row(artifact: Artifact) -> dict[str, object]:
    return {
        "name": artifact.name,
        "arch": artifact.manifest.get("arch"),
        "key": artifact.key,
        "file": str(Path(artifact.tar)),
        "bytes": artifact.size,
        "used": artifact.used,
    }


def _when(stamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(stamp))
