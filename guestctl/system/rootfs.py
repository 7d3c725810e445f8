"""A root file system while it is packed: an archive, staged, and read entry by entry.

The translator has the last word on what an archive means: what `stage` refuses is not packed.
"""

from __future__ import annotations

import contextlib
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from guestctl.entry import Entry
from guestctl.translate import read_entries, stage

__all__ = ["RootFs", "open_rootfs"]


@dataclass(frozen=True)
class RootFs:
    """`tree` is the virtfs tree; `warn` takes a line about what a format cannot hold."""

    tree: Path
    warn: Callable[[str], None]

    def entries(self) -> Iterator[tuple[Entry, int]]:
        """Each entry, sorted, parents first, with its open content or -1; the root is `b""`.

        Of a file with several names the first carries the content, the others link to it.
        """
        return read_entries(self.tree)

    def clamped(self, entry: Entry, least: int, most: int) -> int:
        """The time in whole seconds, within what a format can hold; warns when that changes it."""
        seconds = entry.mtime // 10**9
        held = min(max(seconds, least), most)
        if held != seconds:
            self.warn(f"{entry.shown}: its time {seconds} does not fit, and becomes {held}")
        return held

    def packable(self) -> Iterator[tuple[Entry, int]]:
        """The entries but sockets, which no format here holds."""
        for entry, content in self.entries():
            if stat.S_ISSOCK(entry.mode):
                self.warn(f"{entry.shown}: a socket: left out")
            else:
                yield entry, content


@contextlib.contextmanager
def open_rootfs(archive: Path, scratch: Path, warn: Callable[[str], None]) -> Iterator[RootFs]:
    """Stages an archive into a folder of its own below `scratch` for as long as this lasts.

    :raise ArchiveError: it is broken or hostile.
    """
    with tempfile.TemporaryDirectory(prefix=".pack.", dir=scratch) as folder:
        tree = Path(folder, "tree")
        for line in stage(archive, tree, security_model="mapped-file").warnings:
            warn(line)
        yield RootFs(tree, warn)
