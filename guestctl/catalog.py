"""The images in the cache: which there are, and which one is of this installation.

What makes them is guestctl.image; looking for one must not take the time to load that.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestctl import resources
from guestctl.errors import ImageError
from guestctl.remembered import remembered, stamp
from guestctl.targets import target

__all__ = ["Image", "find", "image_in", "load", "made"]


@dataclass(frozen=True)
class Image:
    """What a guest boots. `root` is a squashfs; `manifest` says what all of it was made from."""

    arch: str
    id: str
    directory: Path
    kernel: Path
    initramfs: Path
    root: Path
    dtb: Path | None
    manifest: Path

    def facts(self) -> dict[str, Any]:
        """The manifest's content."""
        facts: dict[str, Any] = json.loads(self.manifest.read_text())
        return facts


def load(arch: str, *, cache_dir: Path) -> Image:
    """Returns the image of `arch` made from today's recipe, lock and guest-init.

    Raises ImageError when there is none, UsageError for an unknown architecture.
    """
    target(arch)
    images = made(arch, cache_dir=cache_dir)
    wanted = _sources(arch, cache_dir) if images else ""
    for image in images:
        if image.facts().get("sources") == wanted:
            _touch(image.directory / "used")
            return image
    if images:
        message = f"the image of {arch} is older than its recipe, its lock or guest-init"
    else:
        message = f"there is no image of {arch} yet"
    raise ImageError(message, hint=f"guestctl image build {arch}")


def find(arch: str, id_: str, *, cache_dir: Path) -> Image:
    """Returns a certain image of `arch`; raises ImageError where it is not in the cache."""
    target(arch)
    for image in made(arch, cache_dir=cache_dir):
        if image.id == id_:
            return image
    raise ImageError(
        f"the image {id_} of {arch} is not here",
        hint="guestctl image export, where it is, makes a file that guestctl image import takes",
    )


def _touch(path: Path) -> None:
    """For whoever clears the cache; a cache that cannot be written is of use all the same."""
    with contextlib.suppress(OSError):
        path.touch()


def _sources(arch: str, cache_dir: Path) -> str:
    def find() -> str:
        from guestctl.image import sources_digest

        return sources_digest(arch)

    depends = [str(resources.images()), stamp(resources.images(), resources.guest_init())]
    return str(remembered(cache_dir, f"the sources of {arch}", depends, find))


def made(arch: str | None = None, *, cache_dir: Path) -> list[Image]:
    """Returns the images in the cache, the newest first; those of `arch` only, if given."""
    found = []
    for manifest in (cache_dir / "images").glob(f"{arch or '*'}-*/manifest.json"):
        found.append((manifest.stat().st_mtime_ns, image_in(manifest.parent)))
    return [image for _, image in sorted(found, key=lambda pair: pair[0], reverse=True)]


def image_in(folder: Path) -> Image:
    """The image that lies in a folder."""
    arch, _, key = folder.name.rpartition("-")
    dtb = folder / "dtb"
    return Image(
        arch, key, folder, folder / "kernel", folder / "initramfs", folder / "root",
        dtb if dtb.exists() else None, folder / "manifest.json",
    )  # fmt: skip
