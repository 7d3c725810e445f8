"""`guestctl image`: build, list, show, lock and remove images."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from guestctl.cli.output import json_option, print_json, print_table
from guestctl.cli.packages import archive_mirrors, cache_folder, mirror_option, shown

if TYPE_CHECKING:
    from guestctl.image import Image

__all__ = ["group"]


@click.group()
def group() -> None:
    """Build and manage the images that guests boot.

    \b
    Example:
      guestctl image build armv5l
    """


@group.command()
@click.argument("arch")
@click.option("--locked", is_flag=True, help="Fail when the archive lacks a locked version.")
@click.option("-j", "--jobs", type=click.IntRange(1), help="Processes at once.")
@mirror_option
@json_option
def build(
    arch: str, locked: bool, jobs: int | None, mirror: tuple[str, ...], as_json: bool
) -> None:
    """Build the image of ARCH, or say that it is there. Needs no root.

    \b
    Example:
      guestctl image build armv5l
    """
    from guestctl import image

    with shown() as report:
        made = image.build(
            arch,
            cache_dir=cache_folder(),
            locked=locked,
            jobs=jobs or 0,
            mirror=archive_mirrors(mirror),
            progress=report,
        )
    replaced = made.facts()["replaced"]
    if replaced:
        names = ", ".join(sorted({f"{entry['name']} {entry['version']}" for entry in replaced}))
        sys.stderr.write(f"guestctl: the archive no longer has {names}: took today's versions\n")
    if as_json:
        print_json(_row(made))
    else:
        click.echo(f"{made.arch} {made.id} {made.directory}")


@group.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the images in the cache, the newest first.

    \b
    Example:
      guestctl image list --json
    """
    from guestctl import image

    rows = [_row(made) for made in image.made(cache_dir=cache_folder())]
    if as_json:
        print_json({"images": rows})
    else:
        heads = ("ARCH", "ID", "MIB", "MADE", "DIRECTORY")
        print_table(
            heads, [(r["arch"], r["id"], r["mib"], r["made"], r["directory"]) for r in rows]
        )


@group.command()
@click.argument("arch")
@json_option
def show(arch: str, as_json: bool) -> None:
    """Show what the image of ARCH was made from.

    \b
    Example:
      guestctl image show armv5l
    """
    from guestctl import image

    made = image.load(arch, cache_dir=cache_folder())
    facts = made.facts()
    if as_json:
        print_json({**_row(made), "manifest": facts})
        return
    click.echo(f"{made.arch} {made.id} {made.directory}")
    print_table(("FILE", "SHA-256"), list(facts["files"].items()))
    click.echo("")
    print_table(("HOST PACKAGE", "VERSION"), list(facts["host"].items()))
    click.echo("")
    rows = [(p["group"], p["name"], p["version"], p["architecture"]) for p in facts["packages"]]
    print_table(("FOR", "PACKAGE", "VERSION", "ARCHITECTURE"), dict.fromkeys(rows))


@group.command()
@click.argument("arch")
@click.option("--output", type=click.Path(path_type=Path), help="Write the lock here.")
@mirror_option
@json_option
def lock(arch: str, output: Path | None, mirror: tuple[str, ...], as_json: bool) -> None:
    """Write ARCH's lock anew, from the archive as it is today.

    \b
    Example:
      guestctl image lock armv5l
    """
    from guestctl import image

    path, entries = image.lock(
        arch, cache_dir=cache_folder(), mirror=archive_mirrors(mirror), output=output
    )
    if as_json:
        print_json({"lock": str(path), "files": len(entries)})
    else:
        click.echo(f"{path}: {len(entries)} files")


@group.command()
@click.argument("arch")
@json_option
def remove(arch: str, as_json: bool) -> None:
    """Remove the images of ARCH; what they were made from stays cached.

    \b
    Example:
      guestctl image remove x86_64
    """
    from guestctl import image

    removed = image.remove(arch, cache_dir=cache_folder())
    if as_json:
        print_json({"removed": [made.id for made in removed]})
    for made in () if as_json else removed:
        click.echo(f"removed {made.arch} {made.id}")


@group.command()
@click.argument("arch")
@click.argument("out", type=click.Path(path_type=Path))
def export(arch: str, out: Path) -> None:
    """Write an image and all that it was made from to one file.

    \b
    Example:
      guestctl image export armv5l armv5l-image.tar
    """
    from guestctl import bundle

    made = bundle.export(arch, out, cache_dir=cache_folder())
    click.echo(f"{made.arch} {made.id} {out}")


@group.command("import")
@click.argument("file", type=click.Path(path_type=Path))
def import_(file: Path) -> None:
    """Take an image and its inputs from a file that `export` wrote.

    \b
    Example:
      guestctl image import armv5l-image.tar
    """
    from guestctl import bundle

    made = bundle.import_(file, cache_dir=cache_folder())
    click.echo(f"{made.arch} {made.id} {made.directory}")


def _row(made: Image) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in made.directory.iterdir())
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(made.manifest.stat().st_mtime))
    return {
        "arch": made.arch, "id": made.id, "directory": str(made.directory),
        "mib": size >> 20, "made": when,
    }  # fmt: skip
