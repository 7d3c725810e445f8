"""What this host has and lacks, as a list of findings: the substance of `guestctl doctor`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from guestctl import image, toolchain
from guestctl.errors import GuestctlError
from guestctl.places import Places
from guestctl.qemu.accel import acceleration, qemu_version
from guestctl.qemu.bounds import delegated
from guestctl.qemu.confine import probe_confinement
from guestctl.targets import TARGETS, Target, target
from guestctl.view import why_no_view

__all__ = ["Finding", "examine"]

_SPACE_WANTED = 6 << 30
_PATH = f"{os.defpath}:/usr/local/bin:/usr/sbin:/sbin"
# Programs that every guest and image needs, and the Debian packages that have them.
_PROGRAMS = {"mke2fs": "e2fsprogs", "bwrap": "bubblewrap", "apt-get": "apt"}


@dataclass(frozen=True)
class Finding:
    """`mark` is `ok`, `note` (it works, but) or `lacks`."""

    mark: str
    what: str
    found: str
    mend: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def examine(places: Places, arch: str | None = None) -> list[Finding]:
    """All findings, for one architecture or for all of them; raises UsageError for an unknown."""
    rows = [target(arch)] if arch else list(TARGETS.values())
    return [*_host(places, rows), *(finding for row in rows for finding in _target(row, places))]


def _host(places: Places, rows: list[Target]) -> Iterator[Finding]:
    yield Finding("ok", "python", sys.version.split()[0])
    for program, package in _programs(rows).items():
        path = program if os.path.exists(program) else shutil.which(program, path=_PATH)
        if path:
            yield Finding("ok", program, path)
        else:
            yield Finding("lacks", program, "not installed", f"apt-get install {package}")
    confinement = probe_confinement()
    if confinement.namespaces:
        yield Finding("ok", "namespaces", "QEMU runs in its own, with seccomp")
    else:
        yield Finding(
            "note", "namespaces", f"none, seccomp alone: {confinement.reason}", "install bubblewrap"
        )
    yield _bounds()
    yield _view(places)
    there = places.cache
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    mark = "ok" if free >= _SPACE_WANTED else "note"
    mend = "" if mark == "ok" else "building an image takes about 6 GiB"
    yield Finding(mark, "disk space", f"{free >> 30} GiB free for {places.cache}", mend)


def _bounds() -> Finding:
    group = delegated()
    if group is not None:
        return Finding("ok", "bounds", f"rlimits, and control groups below {group}")
    return Finding(
        "note",
        "bounds",
        "rlimits alone: no control group of version 2 with the memory controller is this user's",
        "a systemd user session has one",
    )


def _view(places: Places) -> Finding:
    reason = why_no_view(places.cache)
    if not reason:
        return Finding("ok", "views", "the host's tools can be confined to a guest's files")
    return Finding("note", "views", f"all is compiled in guests: {reason}", "see docs/view.md")


def _toolchain(row: Target, places: Places) -> Finding:
    what = f"{row.arch}: toolchain"
    try:
        found = toolchain.find(row.arch, cache_dir=places.cache)
    except GuestctlError as error:
        return Finding("note", what, f"all is compiled in guests: {error}", error.hint)
    return Finding("ok", what, f"gcc {found.version}, binutils {found.binutils}")


def _target(row: Target, places: Places) -> Iterator[Finding]:
    yield _toolchain(row, places)
    try:
        yield Finding("ok", f"{row.arch}: qemu", qemu_version(row))
    except GuestctlError as error:
        yield Finding("lacks", f"{row.arch}: qemu", str(error), error.hint)
        return
    try:
        made = image.load(row.arch, cache_dir=places.cache)
    except GuestctlError as error:
        yield Finding("note", f"{row.arch}: image", str(error), error.hint)
        return
    yield Finding("ok", f"{row.arch}: image", made.id)
    best = acceleration(row, places.cache, made.kernel, made.initramfs)
    found = f"{best.name}, CPU {best.cpu}" + (f" ({best.reason})" if best.reason else "")
    yield Finding("ok", f"{row.arch}: accelerator", found)


def _programs(rows: list[Target]) -> dict[str, str]:
    """What guests and the images of these targets need, with the packages that have it."""
    needed = dict(_PROGRAMS)
    for row in rows:
        needed.update(image.recipe(row.arch).host)
    return needed
