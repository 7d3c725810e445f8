"""`guestctl system`: root file systems as what boots or runs elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from guestctl.cli.output import json_option, print_json

__all__ = ["group"]

_FORMATS = ("ext4", "squashfs", "cpio", "oci", "tar")


@click.group()
def group() -> None:
    """Pack a root file system for elsewhere, and boot what was packed.

    \b
    Examples:
      guestctl system assemble definitions small rootfs.tar --arch armv5l
      guestctl system pack rootfs.tar rootfs.ext4 --format ext4
      guestctl system boot rootfs.ext4 --arch armv5l
    """


@group.command()
@click.argument("definitions", type=click.Path(path_type=Path))
@click.argument("name", metavar="SYSTEM")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--arch", required=True, help="Its architecture, such as armv5l.")
@click.option("--strict", is_flag=True, help="Fail when two components bring the same path.")
@json_option
def assemble(
    definitions: Path, name: str, out: Path, arch: str, strict: bool, as_json: bool
) -> None:
    """Put the artifacts of SYSTEM, which was built from DEFINITIONS, together as the archive OUT.

    Components go over each other in the order of the system's strata. A path that two of them
    have, and have differently, is told.

    \b
    Example:
      guestctl system assemble definitions small rootfs.tar --arch armv5l
    """
    from guestctl.cli.build import built
    from guestctl.errors import BuildError
    from guestctl.system.assemble import Part
    from guestctl.system.assemble import assemble as make

    parts = [
        Part(each.name, each.tar, each.manifest["files"]) for each in built(definitions, name, arch)
    ]
    report = make(parts, out)
    for line in report.warnings:
        click.echo(f"warning: {line}", err=True)
    if as_json:
        collisions = [asdict(each) for each in report.collisions]
        print_json({"entries": report.entries, "collisions": collisions, "file": str(out)})
    else:
        for each in report.collisions:
            click.echo(f"warning: {each}", err=True)
        click.echo(f"{out}: {report.entries} entries of {len(parts)} components")
    if strict and report.collisions:
        raise BuildError(f"{len(report.collisions)} paths are in two components, and differ")


@group.command()
@click.argument("archive", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(_FORMATS), required=True, help="What to make.")
@click.option("--mtime", type=int, default=None, help="The time of the file system itself.")
@click.option("--size", type=click.IntRange(1), help="For ext4: bytes, in place of what is needed.")
@click.option("--arch", default="armv5l", show_default=True, help="For oci, which names it.")
def pack(
    archive: Path, out: Path, kind: str, mtime: int | None, size: int | None, arch: str
) -> None:
    """Pack the root file system in ARCHIVE as OUT. Needs no root.

    Owners, modes and device nodes are those of ARCHIVE. The same archive gives the same bytes.

    \b
    Example:
      guestctl system pack rootfs.tar.zst rootfs.squashfs --format squashfs
    """
    from guestctl.system.pack import EPOCH, PackOptions
    from guestctl.system.pack import pack as make

    options = PackOptions(EPOCH if mtime is None else mtime, size, arch)
    for line in make(archive, out, kind, options):
        click.echo(f"warning: {line}", err=True)


@group.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--arch", required=True, help="Its architecture, such as armv5l.")
@click.option("--writable", is_flag=True, help="Let the system change IMAGE.")
@click.option("--memory", type=click.IntRange(1), default=None, metavar="MIB")
@click.option("--append", default="", metavar="WORDS", help="More for the kernel's command line.")
@click.option("--print-qemu", is_flag=True, help="Print QEMU's command line, and do nothing.")
def boot(
    image: Path, arch: str, writable: bool, memory: int | None, append: str, print_qemu: bool
) -> int:
    """Boot IMAGE (ext4, squashfs or cpio) in QEMU, with its console here. Ctrl-A X ends it.

    \b
    Example:
      guestctl system boot rootfs.ext4 --arch armv5l
    """
    import shlex

    from guestctl.places import Places
    from guestctl.system.boot import BootOptions, boot_argv
    from guestctl.system.boot import boot as start

    options = BootOptions(writable, memory or 0, append)
    cache = Places.of_user().cache
    if print_qemu:
        click.echo(shlex.join(boot_argv(image, arch, cache, options)))
        return 0
    return start(image, arch, cache, options)
