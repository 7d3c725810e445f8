"""Why a guest was lost: what its supervisor knows, and what the console said last."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from guestctl.errors import AgentBroke, GuestHung, GuestLost
from guestctl.rundir import GuestDir

__all__ = ["explained", "explaining"]

_REAP_TIMEOUT = 30.0
_SILENT_TIMEOUT = 5.0


def explained(folder: GuestDir, error: GuestLost) -> GuestLost:
    """The same loss with what the supervisor knows of it, and the console's tail."""
    cause = str(error)
    useless = isinstance(error, AgentBroke | GuestHung)
    if useless:
        # It may be alive; whoever leases it next must get another.
        folder.condemn(cause)
    # The supervisor reaps QEMU a moment after we have seen its socket close. On a busy host that
    # moment is long; a QEMU that stays is one that has only fallen silent.
    qemu, supervisor = folder.qemu(), folder.supervisor()
    begin = time.monotonic()
    while not useless and time.monotonic() - begin < _REAP_TIMEOUT:
        state = folder.state()
        if state.get("state") in ("lost", "stopped", None):
            cause = state.get("cause") or cause
            break
        if supervisor is None or not supervisor.alive():
            break
        if qemu is not None and qemu.alive() and time.monotonic() - begin > _SILENT_TIMEOUT:
            break
        time.sleep(0.02)
    return type(error)(
        f"guest {folder.name} was lost: {cause}",
        console=folder.console_tail(),
        hint="the console's last lines may tell more",
    )


@contextmanager
def explaining(folder: GuestDir) -> Iterator[None]:
    """Whatever loss comes out of this is explained."""
    try:
        yield
    except GuestLost as error:
        raise explained(folder, error) from None
