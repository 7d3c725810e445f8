"""`guestctl system`: root file systems as what boots or runs elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["group"]

_FORMATS = ("ext4", "squashfs", "cpio", "oci", "tar")


@click.group()
def group() -> None:
    """Pack a root file system for elsewhere, and boot what was packed.

    \b
    Examples:
      guestctl system pack rootfs.tar rootfs.ext4 --format ext4
      guestctl system boot rootfs.ext4 --arch armv5l
    """


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
