"""What commands share that make things from Debian's packages: mirrors, the cache, progress."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from guestctl.imaging.workshop import Progress

__all__ = ["archive_mirrors", "cache_folder", "mirror_option", "shown"]

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
