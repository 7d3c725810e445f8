"""A root file system as an archive becomes what boots or runs: one row a format."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from guestctl.errors import UsageError
from guestctl.system.cpio import write_cpio
from guestctl.system.ext4 import write_ext4
from guestctl.system.oci import write_oci
from guestctl.system.rootfs import RootFs, open_rootfs
from guestctl.system.squashfs import write_squashfs
from guestctl.targets import target
from guestctl.translate import collect

__all__ = ["EPOCH", "FORMATS", "PackOptions", "pack"]

# The time of what has none in the archive: of file systems themselves, of OCI's documents.
EPOCH = 1_700_000_000


@dataclass(frozen=True)
class PackOptions:
    """`epoch` in seconds. `size` in bytes is for ext4: None for what is needed. `arch` is for
    oci, which names it.
    """

    epoch: int = EPOCH
    size: int | None = None
    arch: str = "armv5l"


def _tar(rootfs: RootFs, out: Path, _options: PackOptions) -> None:
    collect(rootfs.tree, out)


FORMATS: dict[str, Callable[[RootFs, Path, PackOptions], None]] = {
    "ext4": lambda rootfs, out, o: write_ext4(rootfs, out, epoch=o.epoch, size=o.size),
    "squashfs": lambda rootfs, out, o: write_squashfs(rootfs, out, epoch=o.epoch),
    "cpio": lambda rootfs, out, _options: write_cpio(rootfs, out),
    "oci": lambda rootfs, out, o: write_oci(rootfs, out, epoch=o.epoch, arch=o.arch),
    "tar": _tar,
}


def pack(
    archive: Path, out: Path, kind: str, options: PackOptions | None = None
) -> tuple[str, ...]:
    """Packs the root file system in `archive` as `kind`, one of FORMATS; returns warnings.

    `out` appears only when it is whole; a file that was there is replaced. The same archive gives
    the same bytes. Owners, modes and device nodes are those of the archive, and root is not needed.

    :raise UsageError: no such format or architecture.
    :raise ArchiveError: the archive is broken or hostile, or does not fit the format.
    :raise HostLacks: a tool is missing.
    """
    if kind not in FORMATS:
        raise UsageError(f"unknown format {kind!r}", hint=f"known are {', '.join(FORMATS)}")
    chosen = options or PackOptions()
    target(chosen.arch)
    warnings: list[str] = []
    folder = out.absolute().parent
    # The name keeps its end: collect chooses the compression by it.
    aside = folder / f".{secrets.token_hex(4)}.{out.name}"
    try:
        with open_rootfs(archive, folder, warnings.append) as rootfs:
            FORMATS[kind](rootfs, aside, chosen)
        os.rename(aside, out)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
    return tuple(dict.fromkeys(warnings))
