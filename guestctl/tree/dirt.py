"""The mark of a tree that a guest may write to, and of one whose guest died meanwhile.

Set before a guest gets the tree and removed when the guest has written all out and let go, it is
what a file system's "not cleanly unmounted" is: whoever finds it on a tree that nobody has mounted
knows that files may be cut short.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from guestctl.tree.state import State, clear_state, open_tree, read_state, write_state

__all__ = ["cleaned", "dirt_of", "soiled", "why_dirty"]

_CONSEQUENCE = "files in it may be missing or cut short"


def why_dirty(state: State) -> str:
    """One clause that says what happened to a tree, empty for a clean one."""
    if not state.dirty:
        return ""
    user = state.dirty.decode(errors="backslashreplace")
    return f"{user} had it mounted and did not let go of it: {_CONSEQUENCE}"


def dirt_of(tree: Path) -> str:
    """`why_dirty` of the tree at a path; raises TreeError."""
    with open_tree(tree) as root:
        return why_dirty(read_state(root))


def soiled(tree: Path, model: str, user: str) -> bool:
    """Marks a tree as `user`'s; says whether it was clean. The caller holds it. Raises OSError."""
    return _changed(tree, model, lambda state: state if state.dirty else _used_by(state, user))


def cleaned(tree: Path, model: str) -> None:
    """Removes the mark; the caller holds the tree. Raises OSError."""
    _changed(tree, model, lambda state: replace(state, dirty=b""))


def _used_by(state: State, user: str) -> State:
    return replace(state, dirty=user.encode())


def _changed(tree: Path, model: str, change: Callable[[State], State]) -> bool:
    """Writes the changed state, and leaves the root's times as they were."""
    with open_tree(tree) as root:
        state = read_state(root)
        wanted = change(state)
        if wanted != state:
            before = os.fstat(root)
            if wanted == State():
                clear_state(root, model)
            else:
                write_state(root, model, wanted)
            os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))
        return not state.dirty
