"""The translator: archives into virtfs trees (stage), trees into archives (collect), and a look at
trees (list, check, repair). What the library offers of it is all here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from guestctl.entry import Entry, Limits
from guestctl.errors import TreeError
from guestctl.translate.collecting import CollectReport, collect
from guestctl.translate.report import Path, clean_subdir, told
from guestctl.translate.staging import StageReport, stage
from guestctl.tree.check import examine
from guestctl.tree.problems import Problem
from guestctl.tree.reader import TreeReader
from guestctl.tree.state import (
    detect_model,
    hold_tree,
    is_partial,
    open_tree,
    read_state,
    tree_state,
)
from guestctl.vmeta import MAPPED_FILE

__all__ = [
    "CollectReport",
    "Entry",
    "Limits",
    "Problem",
    "StageReport",
    "check",
    "collect",
    "is_partial",
    "list_tree",
    "read_entries",
    "repair",
    "stage",
    "tree_state",
]


def list_tree(
    tree: Path, *, path: Path | None = None, security_model: str | None = None
) -> Iterator[Entry]:
    """Yields the entries of a tree as the guest sees them, sorted, parents first."""
    with told(tree), open_tree(tree) as root:
        state = read_state(root)
        model = security_model or detect_model(root, os.fsdecode(tree)) or MAPPED_FILE
        reader = TreeReader(root, model, warn=lambda _line: None, aside=state.aside, content=False)
        for entry, _ in reader.walk(clean_subdir(path)):
            yield entry


def read_entries(tree: Path) -> Iterator[tuple[Entry, int]]:
    """As `list_tree`, each with its open content, or -1 where it has none of its own.

    The descriptor is closed when the next entry is asked for. A further name of a file has -1 and
    `link`, the path of the first.
    """
    with open_tree(tree) as root:
        state = read_state(root)
        model = detect_model(root, os.fsdecode(tree)) or MAPPED_FILE
        reader = TreeReader(root, model, warn=lambda _line: None, aside=state.aside)
        yield from reader.walk()


def check(tree: Path, *, security_model: str | None = None) -> tuple[Problem, ...]:
    """Returns what in a tree breaks guests or builds, each with its path and consequence."""
    with told(tree), open_tree(tree) as root, hold_tree(root, name=os.fsdecode(tree)):
        return _examined(root, tree, security_model, mend=False)


def repair(tree: Path, *, security_model: str | None = None) -> tuple[Problem, ...]:
    """Mends what `check` finds, and returns that: `mended` says what was done with each.

    :raise TreeError: the tree is in use, of both security models, or has links into the cache.
    """
    with (
        told(tree),
        open_tree(tree) as root,
        hold_tree(root, exclusive=True, name=os.fsdecode(tree)),
    ):
        if read_state(root).links:
            raise TreeError(
                f"{os.fsdecode(tree)}: mending it would change the cache that it links to",
                hint="stage it anew",
            )
        return _examined(root, tree, security_model, mend=True)


def _examined(root: int, tree: Path, wanted: str | None, *, mend: bool) -> tuple[Problem, ...]:
    try:
        model = wanted or detect_model(root, os.fsdecode(tree)) or MAPPED_FILE
    except TreeError:
        if mend:
            raise
        return (Problem(b"", "mixed"),)
    return tuple(examine(root, model, mend=mend))
