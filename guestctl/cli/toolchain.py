"""`guestctl toolchain`: cross compilers that stand for the guests' own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from guestctl.cli.output import json_option, print_json, print_table
from guestctl.cli.packages import archive_mirrors, cache_folder, mirror_option, shown

if TYPE_CHECKING:
    from guestctl.toolchain import Toolchain

__all__ = ["group"]

_gcc = click.option(
    "--gcc", default="", metavar="MAJOR", help="Another gcc than that of the image."
)


@click.group()
def group() -> None:
    """Install and check the cross compilers that guests' builds run on the host.

    \b
    Example:
      guestctl toolchain install armv5l
      guestctl toolchain check armv5l
    """


@group.command()
@click.argument("arch")
@click.option("--locked", is_flag=True, help="Fail when the archive lacks a locked version.")
@_gcc
@mirror_option
@json_option
def install(arch: str, locked: bool, gcc: str, mirror: tuple[str, ...], as_json: bool) -> None:
    """Install the toolchain of ARCH into the cache, or say that it is there. Needs no root.

    \b
    Example:
      guestctl toolchain install armv5l
    """
    from guestctl import toolchain

    with shown() as report:
        made = toolchain.install(
            arch,
            gcc,
            cache_dir=cache_folder(),
            locked=locked,
            mirror=archive_mirrors(mirror),
            progress=report,
        )
    if as_json:
        print_json(_row(made))
    else:
        click.echo(f"{made.arch} {made.id} gcc {made.version} {made.path}")


@group.command("list")
@click.argument("arch", required=False)
@json_option
def list_(arch: str | None, as_json: bool) -> None:
    """List the toolchains in the cache, the newest first.

    \b
    Example:
      guestctl toolchain list --json
    """
    from guestctl import toolchain

    rows = [_row(made) for made in toolchain.installed(arch, cache_dir=cache_folder())]
    if as_json:
        print_json({"toolchains": rows})
    else:
        heads = ("ARCH", "ID", "GCC", "BINUTILS", "FOLDER")
        print_table(heads, [[row[head.lower()] for head in heads] for row in rows])


@group.command()
@click.argument("arch")
@json_option
def check(arch: str, as_json: bool) -> int:
    """Run the same calls in a guest of ARCH and on the host, and compare all that comes of them.

    The exit status is 1 when something differs.

    \b
    Example:
      guestctl toolchain check armv5l
    """
    from guestctl import probes
    from guestctl.places import Places

    verdicts = probes.check(arch, Places.of_user())
    if as_json:
        rows = [
            {"probe": v.probe.what, "call": v.probe.call, "problem": v.problem} for v in verdicts
        ]
        print_json({"arch": arch, "probes": rows})
    else:
        print_table(
            ("", "PROBE", "CALL", "PROBLEM"),
            [("bad" if v.problem else "ok", v.probe.what, v.probe.call, v.problem)
             for v in verdicts],
        )  # fmt: skip
    return 1 if any(verdict.problem for verdict in verdicts) else 0


@group.command("map")
@click.argument("arch")
@click.argument("names", nargs=-1)
@json_option
def map_(arch: str, names: tuple[str, ...], as_json: bool) -> None:
    """Show which program of the host answers to which NAMES in a guest of ARCH.

    A name is a program's, such as cc or armv5tel-unknown-linux-gnueabi-gcc; without any, the usual
    ones are shown. A guest's program is replaced only when it is the very one that the toolchain
    stands for: `toolchain check` shows that.

    \b
    Example:
      guestctl toolchain map armv5l armv5tel-unknown-linux-gnueabi-gcc cc
    """
    from guestctl import toolchain
    from guestctl.toolchain.names import ROLES, read_name

    made = toolchain.find(arch, cache_dir=cache_folder())
    programs = {program.role: program for program in made.programs}
    rows = []
    for name in names or (*ROLES, *(f"{made.triplet}-{name}" for name in ROLES)):
        found = read_name(name)
        fits = found is not None and found.arch in (None, arch)
        if fits and found is not None and found.version not in (None, made.major):
            fits = False
        program = programs.get(found.role) if fits and found else None
        path = str(made.path / "usr" / program.path) if program else None
        rows.append({"name": name, "role": found.role if found else None, "program": path})
    if as_json:
        print_json({"arch": arch, "toolchain": made.id, "names": rows})
    else:
        print_table(
            ("NAME", "IS", "ON THE HOST"),
            [(r["name"], r["role"] or "-", r["program"] or "nothing") for r in rows],
        )


@group.command()
@click.argument("arch")
@click.option("--output", type=click.Path(path_type=Path), help="Write the lock here.")
@_gcc
@mirror_option
@json_option
def lock(arch: str, output: Path | None, gcc: str, mirror: tuple[str, ...], as_json: bool) -> None:
    """Write the lock of ARCH's toolchain anew, from the archive as it is today.

    \b
    Example:
      guestctl toolchain lock armv5l
    """
    from guestctl import toolchain

    mirrors = archive_mirrors(mirror)
    path, entries = toolchain.lock(
        arch, gcc, cache_dir=cache_folder(), mirror=mirrors, output=output
    )
    if as_json:
        print_json({"lock": str(path), "files": len(entries)})
    else:
        click.echo(f"{path}: {len(entries)} files")


def _row(made: Toolchain) -> dict[str, Any]:
    return {
        "arch": made.arch,
        "id": made.id,
        "gcc": made.version,
        "binutils": made.binutils,
        "triplet": made.triplet,
        "packages": dict(made.packages),
        "folder": str(made.path),
    }
