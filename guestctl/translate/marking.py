"""How a stage begins: the tree is made, its model known, and marked as partly staged."""

from __future__ import annotations

import contextlib
import os

from guestctl.errors import TreeError
from guestctl.tree.state import (
    State,
    check_model,
    clear_state,
    detect_model,
    open_dir,
    remove_contents,
    write_state,
)
from guestctl.vmeta import MAPPED_FILE, META_DIR, ROOT_FILE, STATE_NAME

__all__ = ["first_mark", "is_new", "make_tree", "model_for", "write_mark"]


def make_tree(where: bytes) -> None:
    try:
        parent = os.path.dirname(os.path.abspath(where))
        os.makedirs(parent, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(where, 0o700)
            os.chmod(where, 0o700)  # whatever the umask
    except OSError as error:
        raise TreeError(f"{os.fsdecode(where)}: {error.strerror}") from error


def write_mark(root: int, model: str, state: State, where: bytes) -> None:
    try:
        if state == State():
            clear_state(root, model)
        else:
            write_state(root, model, state)
    except OSError as error:
        raise TreeError(
            f"{os.fsdecode(where)}: cannot hold {model} metadata: {error.strerror}"
        ) from error


def model_for(root: int, where: bytes, wanted: str | None) -> str:
    if wanted is not None:
        check_model(wanted)
    found = detect_model(root, os.fsdecode(where))
    if found and wanted and found != wanted:
        raise TreeError(
            f"{os.fsdecode(where)}: it is a {found} tree, not a {wanted} one",
            hint="a tree can be of one security model only",
        )
    return wanted or found or MAPPED_FILE


def first_mark(root: int, before: State, base: bytes, name: str) -> State:
    """Decides how a stage begins; cleans up after one that did not end."""
    source = os.fsencode(name)
    fresh = _is_empty(root, base)
    if before.partial:
        same = before.into == base
        if same and before.fresh:
            _empty(root, base)
            fresh = True
        elif not (same and before.source == source):
            raise TreeError(
                f"the tree is partly staged, from {os.fsdecode(before.source)}",
                hint="stage that again to the same place, or begin with a new tree",
            )
    # What an empty tree had of its former life is gone.
    kept = State() if fresh and not base else before
    return State(
        partial=True,
        aside=before.aside,
        fresh=fresh,
        source=source,
        into=base,
        links=kept.links,
        dirty=kept.dirty,
    )


def is_new(root: int) -> bool:
    """Whether there is nothing in the tree yet."""
    return _is_empty(root, b"")


def _folder(root: int, base: bytes) -> int:
    """Opens a folder of the tree; -1 if it is missing.

    :raise OSError: something else is in its place.
    """
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    for name in base.split(b"/") if base else ():
        try:
            below = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
            )
        except FileNotFoundError:
            return -1
        finally:
            os.close(fd)
        fd = below
    return fd


def _is_empty(root: int, base: bytes) -> bool:
    try:
        fd = _folder(root, base)
    except OSError:
        return False  # what comes next will say what is wrong
    if fd < 0:
        return True
    try:
        names = {os.fsencode(name) for name in os.listdir(fd)}
    finally:
        os.close(fd)
    return not names - {META_DIR, ROOT_FILE}


def _empty(root: int, base: bytes) -> None:
    fd = _folder(root, base)
    if fd >= 0:
        try:
            # The mark lies in the root's metadata folder and has to stay until it is written anew.
            remove_contents(fd, keep=META_DIR if not base else None)
            if not base:
                _empty_metadata(fd)
        finally:
            os.close(fd)


def _empty_metadata(root: int) -> None:
    try:
        meta = open_dir(META_DIR, root)
    except FileNotFoundError:
        return  # mapped-xattr
    try:
        remove_contents(meta, keep=STATE_NAME)
    finally:
        os.close(meta)
