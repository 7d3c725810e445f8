"""What new guests are made from: a template and its memory, or nothing, and then they boot."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from guestctl.memory import fill, is_sealed, unfilled
from guestctl.rundir import GuestDir
from guestctl.spec import GuestSpec
from guestctl.template import NoTemplate, Saved, obtained

__all__ = ["Origin", "origin_of"]


def _nothing() -> None:
    """There is nothing to be done."""


@dataclass(frozen=True)
class Origin:
    """What guests that start together start from; the descriptors are -1 where they boot.

    The memory may be empty still: whoever has started guests calls `complete`, so that it is
    filled while their QEMUs start. `filled` is a pipe that ends then; -1: it is there already.
    """

    template: str = ""
    cold: str = ""
    ident: str = ""
    pace: float = 1.0
    console: bytes = b""
    memory: int = -1
    filled: int = -1
    state: int = -1
    scratch: int = -1
    complete: Callable[[], None] = _nothing

    def given(self, spec: GuestSpec) -> GuestSpec:
        """The spec of a guest that starts from here."""
        return replace(spec, template=self.template, cold=self.cold)


@contextlib.contextmanager
def origin_of(
    spec: GuestSpec, cache: Path, *, cold: str = "", siblings: Sequence[GuestDir] = ()
) -> Iterator[Origin]:
    """Opens the template for guests like `spec`, made if need be; `cold` says why there is none.

    The memory is that of the `siblings`, where one of them came out of the same template.
    """
    with contextlib.ExitStack() as stack:
        try:
            if cold:
                raise NoTemplate(cold)
            saved = stack.enter_context(obtained(spec, cache))
            found = _opened(saved, siblings, stack)
        except NoTemplate as error:
            found = Origin(cold=str(error))
        yield found


def _opened(saved: Saved, siblings: Sequence[GuestDir], stack: contextlib.ExitStack) -> Origin:
    """Raises NoTemplate."""
    memory = _lent(saved, siblings)
    origin = Origin(
        template=saved.folder,
        ident=saved.ident,
        pace=saved.pace,
        console=saved.console,
        memory=memory,
        state=saved.state,
        scratch=saved.scratch,
    )
    if memory >= 0:
        stack.callback(os.close, memory)
        return origin
    try:
        memory = unfilled(saved.ram)
    except OSError as error:
        raise NoTemplate(f"its memory cannot be copied: {error.strerror}") from None
    stack.callback(os.close, memory)
    filled, filling = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, filled)
    # Closed at the latest when this origin is: nobody waits for a starter that has failed.
    writer = stack.enter_context(os.fdopen(filling, "wb", 0))

    def complete() -> None:
        # One that could not be filled has no seal, and whoever waits for it boots.
        with writer, contextlib.suppress(OSError):
            fill(memory, saved.ram)

    return replace(origin, memory=memory, filled=filled, complete=complete)


def _lent(saved: Saved, siblings: Sequence[GuestDir]) -> int:
    """The memory that the supervisor of a sibling holds, or -1."""
    for folder in siblings:
        state = folder.state()
        supervisor = folder.supervisor()
        if state.get("origin") != saved.ident or supervisor is None:
            continue
        with contextlib.suppress(OSError):
            memory = os.open(
                f"/proc/{supervisor.pid}/fd/{state.get('memory_fd')}", os.O_RDONLY | os.O_CLOEXEC
            )
            # Only now is it certain whose descriptor that was.
            if supervisor.alive() and _fits(memory, saved):
                return memory
            os.close(memory)
    return -1


def _fits(memory: int, saved: Saved) -> bool:
    return is_sealed(memory) and os.fstat(memory).st_size == os.fstat(saved.ram).st_size
