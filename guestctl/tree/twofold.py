"""Links the leaves of many folders in two processes: each link waits for the kernel alone.

A fork, since a fresh interpreter takes longer than all of the links: the child does nothing but
system calls on descriptors that it opens itself, and leaves without cleaning up.
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
from collections.abc import Sequence
from typing import Any

from guestctl.tree.state import OPEN_DIR
from guestctl.vmeta import META_DIR

__all__ = ["Job", "link_twofold"]

# Where the names lie in the source, where they go in the tree, and the names.
Job = tuple[bytes, bytes, list[bytes]]


def link_twofold(source: int, root: int, jobs: Sequence[Job], *, file_model: bool) -> list[Job]:
    """Links all that is not in the way of anything; returns what is left to do.

    :raise OSError: a link that cannot be made.
    """
    halves: tuple[list[Job], list[Job]] = ([], [])
    sizes = [0, 0]
    for job in jobs:
        less = int(sizes[1] < sizes[0])
        halves[less].append(job)
        sizes[less] += len(job[2])
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        _serve(theirs, source, root, halves[1], file_model)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        try:
            left = _link(source, root, halves[0], file_model)
            told = pipe.read()
        finally:
            pipe.close()
            os.waitpid(child, 0)
    rest: list[Job]
    try:
        rest, failed = marshal.loads(told)
    except EOFError:  # it was killed, with nothing or half of it said
        return [*left, *halves[1]]  # what it has done will be in the way
    if failed:
        raise OSError(failed, os.strerror(failed))
    return left + rest


def _serve(out: int, source: int, root: int, jobs: list[Job], file_model: bool) -> None:
    """The child: it never returns, whatever happens."""
    try:
        gc.disable()  # what others have left to be finalised is theirs
        answer: Any = [], 0
        try:
            answer = _link(source, root, jobs, file_model, parent=os.getppid()), 0
        except OSError as error:
            answer = [], error.errno
        data = marshal.dumps(answer)
        while data:
            data = data[os.write(out, data) :]
    finally:
        os._exit(0)


def _link(
    source: int, root: int, jobs: list[Job], file_model: bool, *, parent: int = 0
) -> list[Job]:
    left: list[Job] = []
    with _Folders(source) as below, _Folders(root) as above:
        for old, new, names in jobs:
            if parent and os.getppid() != parent:
                break
            todo = names
            there, here = below.at(old), above.at(new)
            taken = _link_all(todo, there, here)
            if file_model:
                if taken:
                    todo = [name for name in names if name not in set(taken)]
                lower = os.open(META_DIR, OPEN_DIR, dir_fd=there)
                try:
                    upper = os.open(META_DIR, OPEN_DIR, dir_fd=here)
                    try:
                        taken += _link_all(todo, lower, upper)
                    finally:
                        os.close(upper)
                finally:
                    os.close(lower)
            if taken:
                left.append((old, new, taken))
    return left


def _link_all(names: list[bytes], there: int, here: int) -> list[bytes]:
    """Returns the names that are taken."""
    link = os.link
    taken = []
    for name in names:
        try:
            link(name, name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        except FileExistsError:
            taken.append(name)
    return taken


class _Folders:
    """Folders of a tree, opened step by step, following nothing; those above the last are kept."""

    def __init__(self, root: int) -> None:
        self._path: list[bytes] = []
        self._fds = [os.dup(root)]

    def __enter__(self) -> _Folders:
        return self

    def __exit__(self, *_exc: object) -> None:
        for fd in self._fds:
            os.close(fd)

    def at(self, path: bytes) -> int:
        parts = path.split(b"/") if path else []
        same = 0
        with contextlib.suppress(IndexError):
            while parts[same] == self._path[same]:
                same += 1
        while len(self._path) > same:
            self._path.pop()
            os.close(self._fds.pop())
        for part in parts[same:]:
            self._fds.append(os.open(part, OPEN_DIR, dir_fd=self._fds[-1]))
            self._path.append(part)
        return self._fds[-1]
