"""Two processes that link an artifact side by side: each link waits for the kernel alone.

A fork, since a fresh interpreter takes longer than all of the links: the child does nothing but
system calls on descriptors that it opens itself, and leaves without cleaning up. The parent takes
beds from the front and the child from the back, until they meet: who takes one more reads a token.
"""

from __future__ import annotations

import gc
import marshal
import os
import select
import signal
from collections.abc import Sequence
from typing import Any

from guestctl.tree.planting import Bed, Left, Planter

__all__ = ["plant_twofold"]

_DEADLINE = 600  # seconds for what the child has still to do, one bed at most
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
    try:
        with Planter(source, target, file_model=file_model) as planter:
            while _claimed(tokens):
                if left := planter.plant(todo[done]):
                    rest.append((done, left))
                done += 1
            planter.finish()
        told = _heard(ours)
    finally:
        # At once, whatever it does: it has said all, or is stopped, or nobody wants to hear it.
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(tokens)
        os.close(ours)
    theirs_left: Rest
    try:
        theirs_left, failed = marshal.loads(told)
    except EOFError:  # it was killed or stopped, with nothing or half of it said
        return [*rest, *((number, None) for number in range(done, len(todo)))]
    if failed:
        raise OSError(failed, os.strerror(failed))
    return rest + theirs_left


def _heard(pipe: int) -> bytes:
    """What the child says until it ends, or says nothing more for too long."""
    told = b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while poll.poll(_DEADLINE * 1000) and (data := os.read(pipe, 65536)):
        told += data
    return told


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
