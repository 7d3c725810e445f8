"""Images: kernel, initramfs and root file system of a target, made from a recipe and its lock.

Layer 3. `build` needs no root. An image is a folder named by the hash of all that went into it;
its parts are steps (guestctl.imaging), each cached on its own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from guestctl import resources
from guestctl.catalog import Image, find, image_in, load, made
from guestctl.errors import ImageError
from guestctl.imaging import hosttools, squashfs
from guestctl.imaging.assembly import Assembly
from guestctl.imaging.workshop import Progress, Report, Workshop, digest, lock_file, sync_tree
from guestctl.packages import Archive
from guestctl.recipe import Locked, Recipe, dump_lock, parse_lock, parse_recipe
from guestctl.targets import target

__all__ = [
    "Image",
    "Progress",
    "archive",
    "build",
    "find",
    "load",
    "lock",
    "made",
    "recipe",
    "remove",
    "root_folder",
]

_KEPT_IDS = 12


def recipe(arch: str) -> Recipe:
    """Returns the recipe of `arch`; raises UsageError for an unknown one, or ImageError."""
    path = resources.images() / f"{target(arch).arch}.yaml"
    try:
        return parse_recipe(path.read_text(), str(path))
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None


def archive(arch: str, *, cache_dir: Path, mirror: Sequence[str] = ()) -> Archive:
    """Returns the Debian archive that images of `arch` are made from."""
    return Archive(cache_dir / "packages", suites=recipe(arch).suites, mirror=mirror)


def build(
    arch: str,
    *,
    cache_dir: Path,
    locked: bool = False,
    jobs: int = 0,
    mirror: Sequence[str] = (),
    progress: Report = lambda event: None,
) -> Image:
    """Builds the image of `arch`, or finds it in the cache.

    Packages are those of the lock. Of those that the archive has no more, today's are taken, and
    the manifest says so; with `locked`, PackageGone is raised instead. `jobs` is how many processes
    may run at once, 0 for one a processor. `progress` is called from several threads.
    Raises HostLacks (a tool is missing, with its package) and ImageError.
    """
    made_from = recipe(arch)
    versions = hosttools.versions(made_from)
    workshop = Workshop(cache_dir, jobs=jobs or len(os.sched_getaffinity(0)), report=progress)
    store = archive(arch, cache_dir=cache_dir, mirror=mirror)
    waiting = partial(progress, Progress("image", "waits", "another build of it"))
    with lock_file(cache_dir / "images" / f".{arch}.lock", waiting):
        workshop.sweep()
        assembly = Assembly(made_from, workshop, store, versions)
        parts, facts = assembly.make(_lock_of(arch), locked=locked)
        facts = {"arch": arch, "sources": sources_digest(arch), **facts}
        return _place(cache_dir, arch, parts, facts)


def lock(
    arch: str, *, cache_dir: Path, mirror: Sequence[str] = (), output: Path | None = None
) -> tuple[Path, tuple[Locked, ...]]:
    """Resolves the recipe against today's archive and writes the lock, beside the recipe or to
    `output`. Raises ImageError."""
    made_from = recipe(arch)
    entries = Assembly.resolve(made_from, archive(arch, cache_dir=cache_dir, mirror=mirror))
    path = output or _lock_path(arch)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(dump_lock(entries, arch))
        draft.replace(path)
    except OSError as error:
        hint = "--output FILE writes the lock elsewhere"
        raise ImageError(f"{path}: {error.strerror}", hint=hint) from None
    return path, entries


def remove(arch: str, *, cache_dir: Path) -> list[Image]:
    """Removes the images of `arch` and returns them. Guests that run keep their open files."""
    target(arch)
    with lock_file(cache_dir / "images" / f".{arch}.lock"):
        images = made(arch, cache_dir=cache_dir)
        for image in images:
            # The manifest goes first: without it a folder is no image.
            image.manifest.unlink(missing_ok=True)
            shutil.rmtree(image.directory, ignore_errors=True)
    return images


def root_folder(image: Image, *, progress: Report = lambda event: None) -> Path:
    """Returns the image's root as a plain folder of the caller's, after unpacking it if need be.

    Links are real links; owners and devices are left out. Raises ImageError.
    """
    cache_dir = image.directory.resolve().parent.parent
    workshop = Workshop(cache_dir, jobs=1, report=progress)
    facts = [squashfs.VERSION, image.facts()["files"]["root"]]
    work = partial(squashfs.unpack_squashfs, image=image.root)
    return workshop.make(f"folder-{image.arch}", facts, work) / "root"


def sources_digest(arch: str) -> str:
    """The hash of the files of this installation that an image of `arch` is made from."""
    folder = resources.images()
    made_from = recipe(arch)
    files = [folder / f"{arch}.yaml", folder / made_from.kernel.config, _lock_path(arch)]
    texts = [file.read_text() if file.exists() else "" for file in files]
    return digest([texts, hosttools.guest_init_digest()])


def _lock_path(arch: str) -> Path:
    return resources.images() / f"{arch}.lock"


def _lock_of(arch: str) -> tuple[Locked, ...]:
    path = _lock_path(arch)
    try:
        return parse_lock(path.read_text(), str(path))
    except FileNotFoundError:
        hint = f"guestctl image lock {arch}"
        raise ImageError(f"there is no lock {path}", hint=hint) from None


def _place(cache_dir: Path, arch: str, parts: dict[str, Path], facts: dict[str, Any]) -> Image:
    """Makes the image's folder, whole or not at all. Its files are links to those of the steps."""
    key = digest(facts)[:_KEPT_IDS]
    place = cache_dir / "images" / f"{arch}-{key}"
    if not (place / "manifest.json").exists():
        draft = place.with_name(f".{place.name}.part")
        for old in (draft, place):
            shutil.rmtree(old, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, path in parts.items():
            os.link(path, draft / name)
        (draft / "manifest.json").write_text(json.dumps({"id": key, **facts}, indent=1) + "\n")
        sync_tree(draft)
        draft.replace(place)
    os.utime(place / "manifest.json")
    return image_in(place)
