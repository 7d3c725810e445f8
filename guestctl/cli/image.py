"""`guestctl image`: build, list, show, lock and remove images."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from guestctl.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from guestctl.image import Image, Progress

__all__ = ["group"]

_mirror = click.option(
    "--mirror", multiple=True, metavar="URL", help="Debian archive in place of the host's own."
)


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
@_mirror
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

    with _shown() as report:
        made = image.build(
            arch,
            cache_dir=_cache(),
            locked=locked,
            jobs=jobs or 0,
            mirror=_mirrors(mirror),
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

    rows = [_row(made) for made in image.made(cache_dir=_cache())]
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

    made = image.load(arch, cache_dir=_cache())
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
@_mirror
@json_option
def lock(arch: str, output: Path | None, mirror: tuple[str, ...], as_json: bool) -> None:
    """Write ARCH's lock anew, from the archive as it is today.

    \b
    Example:
      guestctl image lock armv5l
    """
    from guestctl import image

    path, entries = image.lock(arch, cache_dir=_cache(), mirror=_mirrors(mirror), output=output)
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

    removed = image.remove(arch, cache_dir=_cache())
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

    made = bundle.export(arch, out, cache_dir=_cache())
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

    made = bundle.import_(file, cache_dir=_cache())
    click.echo(f"{made.arch} {made.id} {made.directory}")


def _cache() -> Path:
    import platformdirs

    # Places.of_user would make a run directory as well, which no image needs.
    return Path(platformdirs.user_cache_dir("guestctl"))


def _mirrors(given: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the command line, or else of `mirror:` in the user's config: a text or a list."""
    import platformdirs
    import yaml

    path = Path(platformdirs.user_config_dir("guestctl")) / "config.yaml"
    if given or not path.exists():
        return given
    try:
        facts = yaml.safe_load(path.read_text()) or {}
        found = facts.get("mirror") or ()
        found = (found,) if isinstance(found, str) else tuple(found)
        if not all(isinstance(word, str) for word in found):
            raise TypeError("mirror: must be a text or a list of texts")
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise click.ClickException(f"{path}: {str(error).splitlines()[0]}") from None
    return found


def _row(made: Image) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in made.directory.iterdir())
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(made.manifest.stat().st_mtime))
    return {
        "arch": made.arch, "id": made.id, "directory": str(made.directory),
        "mib": size >> 20, "made": when,
    }  # fmt: skip


class _shown:
    """Shows progress on stderr: bars on a terminal, one line for each change elsewhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, Any] = {}
        self._bars: Any = None

    def __enter__(self) -> _shown:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(),
                TextColumn("{task.fields[text]}", markup=False),
            )  # fmt: skip
            self._bars = Bars(*columns, console=Console(stderr=True))
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, event: Progress) -> None:
        with self._lock:
            if self._bars:
                self._draw(event)
            elif event.state != "runs":
                sys.stderr.write(f"{event.step}: {event.state} {event.text}".rstrip() + "\n")
                sys.stderr.flush()

    def _draw(self, event: Progress) -> None:
        if event.step not in self._tasks:
            self._tasks[event.step] = self._bars.add_task(event.step, total=None, text="")
        task = self._tasks[event.step]
        if event.state in ("done", "cached"):
            self._bars.update(task, total=1, completed=1, text=event.state)
            self._bars.stop_task(task)
        else:
            share = {} if event.share is None else {"total": 1, "completed": event.share}
            self._bars.update(task, text=event.text[-60:], **share)
