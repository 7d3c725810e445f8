"""What the commands share: JSON, tables, and the options that several of them take."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

__all__ = ["json_option", "print_json", "print_table"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")


def print_json(facts: dict[str, Any]) -> None:
    """Prints facts with the version of their form."""
    click.echo(json.dumps({"version": 1, **facts}, indent=2))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns under heads; nothing but text, so that other programs can read it."""
    lines = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write(padded.rstrip() + "\n")
