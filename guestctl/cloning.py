"""What new guests are made from: a template and its memory, or nothing, and then they boot."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from guestctl.memory import is_sealed
from guestctl.rundir import GuestDir
from guestctl.spec import GuestSpec
from guestctl.template import NoTemplate, Saved, obtain

__all__ = ["Origin", "origin_of"]


@dataclass(frozen=True)
class Origin:
    """What guests that start together start from; the descriptors are -1 where they boot."""

    template: str = ""
    cold: str = ""
    ident: str = ""
    pace: float = 1.0
    memory: int = -1
    state: int = -1
    scratch: int = -1

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
            template = obtain(spec, cache)
            saved = stack.enter_context(template.opened())
            memory = _lent(saved, siblings)
            if memory < 0:
                memory = saved.memory()
            stack.callback(os.close, memory)
            found = Origin(
                str(template.folder),
                "",
                saved.ident,
                saved.pace,
                memory,
                saved.state,
                saved.scratch,
            )
        except NoTemplate as error:
            found = Origin(cold=str(error))
        yield found


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
