"""What commands share that make things from Debian's packages: mirrors, the cache, progress."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from guestctl.imaging.workshop import Progress

__all__ = ["archive_mirrors", "cache_folder", "debian_schemes", "mirror_option", "shown"]

mirror_option = click.option(
    "--mirror", multiple=True, metavar="URL", help="Debian archive in place of the host's own."
)


def cache_folder() -> Path:
    """The user's cache."""
    import platformdirs

    # Places.of_user would make a run directory as well, which no image needs.
    return Path(platformdirs.user_cache_dir("guestctl"))


def archive_mirrors(given: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the command line, or else of `mirror:` in the user's config: a text or a list."""
    from guestctl.cli.settings import setting, texts

    return given or setting("mirror", texts)


def debian_schemes(arch: str, cache: Path) -> dict[str, Callable[[str], Path]]:
    """Addresses of what the Debian archive has: upstream tarballs, and packages of `arch`."""
    from guestctl import image

    archive = image.archive(arch, cache_dir=cache)

    def upstream(address: str) -> Path:
        return archive.orig_tarball(address.partition(":")[2])[1]

    def package(address: str) -> Path:
        (entry,) = archive.pick([address.partition(":")[2]], image.recipe(arch).debian)
        return archive.fetch([entry])[entry]

    return {"debian": upstream, "deb": package}


class shown:
    """Shows progress on stderr: bars on a terminal, one line for each change elsewhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, Any] = {}
        self._bars: Any = None

    def __enter__(self) -> shown:
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
