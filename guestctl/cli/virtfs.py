"""`guestctl virtfs`."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, TextIO

import click

from guestctl.cli.output import json_option, print_json

if TYPE_CHECKING:
    from guestctl.tree.problems import Problem

__all__ = ["group"]

_MODELS = click.Choice(["mapped-file", "mapped-xattr"])
_model_option = click.option(
    "--security-model", type=_MODELS, default=None, help="Of the tree; found out by default."
)
Progress = Callable[[int, int], None]
_REFRESH = 0.1  # seconds


@contextmanager
def _progress(what: str) -> Iterator[Progress | None]:
    """A line that counts entries and bytes, on a terminal only."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TextColumn, TimeElapsedColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        TextColumn("{task.fields[entries]} entries"),
        TextColumn("{task.fields[shown]}"),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, entries=0, shown="")
        due = 0.0

        def step(entries: int, size: int) -> None:
            nonlocal due
            now = time.monotonic()
            if now >= due:
                due = now + _REFRESH
                shown = f"{size / 1e6:,.0f} MB"
                bar.update(task, completed=size, entries=f"{entries:,}", shown=shown)

        yield step


def _standard(stream: TextIO | None, what: str) -> BinaryIO:
    if stream is None:  # a shell's <&- or >&-
        raise click.UsageError(f"standard {what} is closed")
    return stream.buffer


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("not a number")
    return value


def _warn(lines: tuple[str, ...]) -> None:
    for line in lines:
        click.echo(f"warning: {line}", err=True)


@click.group()
def group() -> None:
    """Turn archives into shared trees, and back.

    \b
    Examples:
      guestctl virtfs stage rootfs.tar tree
      guestctl virtfs collect tree artifact.tar.gz --path inst --mtime 0
    """


@group.command()
@click.argument("source")
@click.argument("tree")
@click.option("--into", default=None, metavar="SUBDIR", help="Stage below this folder of the tree.")
@click.option("--link", is_flag=True, help="Link unpacked artifacts from the cache (read-only).")
@click.option("--follow-dirs", is_flag=True, help="Go through links to directories in the tree.")
@click.option("--exclude-vcs", is_flag=True, help="Leave out .git and the like of a folder.")
@click.option("--max-entries", type=click.IntRange(min=1), default=None, help="Limit on entries.")
@click.option("--max-bytes", type=click.IntRange(min=1), default=None, help="Limit on bytes.")
@click.option("--max-depth", type=click.IntRange(min=1), default=None, help="Limit on depth.")
@click.option(
    "--max-ratio",
    type=click.FloatRange(min=1),
    default=None,
    callback=lambda _context, _option, value: _finite(value),
    help="Limit on growth by unpacking.",
)
@_model_option
@json_option
def stage(
    source: str,
    tree: str,
    into: str | None,
    link: bool,
    follow_dirs: bool,
    exclude_vcs: bool,
    max_entries: int | None,
    max_bytes: int | None,
    max_depth: int | None,
    max_ratio: float | None,
    security_model: str | None,
    as_json: bool,
) -> None:
    """Unpack SOURCE, an archive, a directory, or - for standard input, into the virtfs TREE.

    \b
    Examples:
      guestctl virtfs stage sysroot.tar.zst tree
      curl -L https://example.org/zlib.tar.gz | guestctl virtfs stage - tree --into build
      guestctl virtfs stage zlib-1.2.13.tar sysroot --link
    """
    from dataclasses import replace

    from guestctl import translate

    given = {
        "entries": max_entries,
        "bytes": max_bytes,
        "depth": max_depth,
        "ratio": max_ratio,
    }
    limits = replace(
        translate.Limits(),
        **{key: value for key, value in given.items() if value is not None},  # type: ignore[arg-type]
    )
    with _progress("staging") as progress:
        report = translate.stage(
            _standard(sys.stdin, "input") if source == "-" else source,
            tree,
            into=into,
            follow_dirs=follow_dirs,
            link=link,
            security_model=security_model,
            limits=limits,
            progress=progress,
            exclude_vcs=exclude_vcs,
        )
    _warn(report.warnings)
    if as_json:
        print_json({"entries": report.entries, "bytes": report.bytes, "warnings": report.warnings})


def _epoch() -> int | None:
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise click.UsageError(f"SOURCE_DATE_EPOCH is no number: {text!r}") from None


@group.command()
@click.argument("tree")
@click.argument("out")
@click.option("--path", default=None, metavar="SUBDIR", help="Only this folder, as the root.")
@click.option(
    "--mtime",
    type=int,
    default=None,
    metavar="EPOCH",
    help="No time is later than this. Default: SOURCE_DATE_EPOCH, if set.",
)
@_model_option
@json_option
def collect(
    tree: str,
    out: str,
    path: str | None,
    mtime: int | None,
    security_model: str | None,
    as_json: bool,
) -> None:
    """Pack the virtfs TREE as OUT: .tar, .tar.gz, .tar.xz or .tar.zst, or - for standard output.

    \b
    Example:
      guestctl virtfs collect tree zlib.tar.zst --path inst --mtime 0
    """
    from guestctl import translate

    if out == "-" and as_json:
        raise click.UsageError("the archive goes to standard output: it has no place for --json")
    with _progress("collecting") as progress:
        report = translate.collect(
            tree,
            _standard(sys.stdout, "output") if out == "-" else out,
            path=path,
            mtime=_epoch() if mtime is None else mtime,
            security_model=security_model,
            progress=progress,
        )
    _warn(report.warnings)
    if as_json:
        print_json({"entries": report.entries, "bytes": report.bytes, "warnings": report.warnings})


@group.command("list")
@click.argument("tree")
@click.option("--path", default=None, metavar="SUBDIR", help="Only this folder.")
@_model_option
@json_option
def list_(tree: str, path: str | None, security_model: str | None, as_json: bool) -> None:
    """Show TREE as the guest sees it, like `tar -tv`.

    \b
    Example:
      guestctl virtfs list tree --path etc
    """
    from guestctl import translate
    from guestctl.tree.listing import facts, line

    entries = translate.list_tree(tree, path=path, security_model=security_model)
    if as_json:
        print_json({"entries": [facts(entry) for entry in entries]})
        return
    for entry in entries:
        click.echo(line(entry))


@group.command()
@click.argument("tree")
@_model_option
@json_option
def check(tree: str, security_model: str | None, as_json: bool) -> int:
    """Find what in TREE breaks guests or builds. Exit status 1: there is something.

    \b
    Example:
      guestctl virtfs check tree
    """
    from guestctl import translate

    problems = translate.check(tree, security_model=security_model)
    _problems(problems, as_json)
    return 1 if problems else 0


@group.command()
@click.argument("tree")
@_model_option
@json_option
def repair(tree: str, security_model: str | None, as_json: bool) -> int:
    """Mend what `check` finds in TREE. Exit status 1: something could not be mended.

    \b
    Example:
      guestctl virtfs repair tree
    """
    from guestctl import translate

    problems = translate.repair(tree, security_model=security_model)
    _problems(problems, as_json)
    return 0 if all(problem.mended for problem in problems) else 1


def _problems(problems: Sequence[Problem], as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "path": os.fsdecode(problem.path) or ".",
                "kind": problem.kind,
                "detail": problem.detail,
                "consequence": problem.consequence,
                "mended": problem.mended,
            }
            for problem in problems
        ]
        print_json({"problems": rows})
        return
    for problem in problems:
        click.echo(problem.line)
