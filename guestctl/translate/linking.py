"""stage --link: which artifacts are linked into which trees; the rest is copied, or refused."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from guestctl.errors import TreeError
from guestctl.places import Places
from guestctl.qemu.confine import Confinement, known_confinement
from guestctl.rundir import flocked
from guestctl.share import Share, share_lock
from guestctl.translate.unpacked import Artifact, Translation, Unpack, cached
from guestctl.tree.linked import Unlinkable

__all__ = ["linkable", "unexported"]


@contextlib.contextmanager
def linkable(
    source: object,
    tree: object,
    root: int,
    translation: Translation,
    links: tuple[bytes, ...],
    unpack: Unpack,
    warn: Callable[[str], None],
) -> Iterator[Artifact | None]:
    """Yields the artifact in the cache, unpacked if it was not there; None, with a warning, where
    it has to be copied. `links` are the tokens of those that the tree at `root` has already.
    """
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(
                cached(_archive(source, tree), root, translation, links, unpack)
            )
        except Unlinkable as error:
            warn(f"copied, not linked: {error}")
            found = None
        yield found


def _archive(source: object, tree: object) -> int:
    """The descriptor of an archive that may be linked; Unlinkable says why another may not."""
    if not isinstance(source, int) or not stat.S_ISREG(os.fstat(source).st_mode):
        raise Unlinkable("only an archive that is a file is kept in the cache")
    if os.geteuid() == 0:
        raise Unlinkable("root may write to any file, whatever its mode")
    if isinstance(tree, Share) and not tree.confined:
        raise Unlinkable(f"the QEMU of guest {tree.guest} has no namespaces of its own")
    held = _confinement()
    if not held.namespaces:
        raise Unlinkable(f"QEMU gets no namespaces of its own here: {held.reason}")
    return source


@functools.cache
def _confinement() -> Confinement:
    return known_confinement(Places.of_user().cache)


@contextlib.contextmanager
def unexported(tree: object, where: bytes) -> Iterator[None]:
    """Keeps a folder from becoming a guest's writable share while links are put into it.

    :raise TreeError: it is one.
    """
    if isinstance(tree, Share) and tree.writable:
        raise _writable(where)
    path = share_lock(Path(os.fsdecode(where)), Places.of_user().runtime)
    lock = flocked(path)
    if lock is None:
        raise _writable(where)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _writable(where: bytes) -> TreeError:
    return TreeError(
        f"{os.fsdecode(where)}: a guest may write to it, and so to what is linked",
        hint="link into the guest's read-only base, or stage without --link",
    )
