"""Two processes that link an artifact side by side: each link waits for the kernel alone.

A fork, since a fresh interpreter takes longer than all of the links: the child does nothing but
system calls on descriptors that it opens itself, and leaves without cleaning up. The parent takes
beds from the front and the child from the back, until they meet: who takes one more reads a token.
"""

from __future__ import annotations

import gc
import marshal
import os
from collections.abc import Sequence
from typing import Any

from guestctl.tree.planting import Bed, Left, Planter

__all__ = ["plant_twofold"]

# What is left of each bed, by its index; None: all of it.
Rest = list[tuple[int, Left | None]]


def plant_twofold(source: int, target: int, todo: Sequence[Bed], *, file_model: bool) -> Rest:
    """Plants all that nothing is in the way of; returns what is left to do. There are two or more.

    :raise OSError: something else is the matter.
    """
    # The last one is the child's, whenever it begins.
    tokens = os.eventfd(len(todo) - 1, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        _serve(theirs, tokens, source, target, todo, file_model)
    os.close(theirs)
    done = 0
    rest: Rest = []
    with open(ours, "rb") as pipe:
        try:
            with Planter(source, target, file_model=file_model) as planter:
                while _claimed(tokens):
                    if left := planter.plant(todo[done]):
                        rest.append((done, left))
                    done += 1
                planter.finish()
            told = pipe.read()
        finally:
            while _claimed(tokens):  # the child, too, is to end now
                pass
            os.close(tokens)
            pipe.close()
            os.waitpid(child, 0)
    theirs_left: Rest
    try:
        theirs_left, failed = marshal.loads(told)
    except EOFError:  # it was killed, with nothing or half of it said
        return [*rest, *((number, None) for number in range(done, len(todo)))]
    if failed:
        raise OSError(failed, os.strerror(failed))
    return rest + theirs_left


def _claimed(tokens: int) -> bool:
    try:
        return bool(os.read(tokens, 8))
    except BlockingIOError:
        return False


def _serve(
    out: int, tokens: int, source: int, target: int, todo: Sequence[Bed], file_model: bool
) -> None:
    """The child: it never returns, whatever happens."""
    try:
        gc.disable()  # what others have left to be finalised is theirs
        answer: Any
        try:
            answer = _plant(tokens, source, target, todo, file_model, os.getppid()), 0
        except OSError as error:
            answer = [], error.errno
        data = marshal.dumps(answer)
        while data:
            data = data[os.write(out, data) :]
    finally:
        os._exit(0)


def _plant(
    tokens: int, source: int, target: int, todo: Sequence[Bed], file_model: bool, parent: int
) -> Rest:
    rest: Rest = []
    with Planter(source, target, file_model=file_model) as planter:
        for number in reversed(range(len(todo))):
            if os.getppid() != parent:
                break
            if left := planter.plant(todo[number]):
                rest.append((number, left))
            if not _claimed(tokens):
                break
        planter.finish()
    return rest
