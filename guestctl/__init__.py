"""Build operating systems for other architectures natively, in pools of small QEMU guests.

    from guestctl import Pool, stage, collect

The names are loaded when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from guestctl.version import __version__

if TYPE_CHECKING:
    from guestctl.errors import (
        ArchiveError,
        BuildError,
        CommandFailed,
        DefinitionError,
        Detached,
        GuestctlError,
        GuestLost,
        HostLacks,
        ImageError,
        PoolError,
        ShareError,
        TreeError,
        UsageError,
    )
    from guestctl.guest import Guest
    from guestctl.pool import Pool
    from guestctl.process import PIPE, Process
    from guestctl.spec import Result, Usage
    from guestctl.translate import collect, stage

_HOMES = {
    "ArchiveError": "errors",
    "BuildError": "errors",
    "CommandFailed": "errors",
    "Detached": "errors",
    "DefinitionError": "errors",
    "GuestLost": "errors",
    "GuestctlError": "errors",
    "HostLacks": "errors",
    "ImageError": "errors",
    "PoolError": "errors",
    "ShareError": "errors",
    "TreeError": "errors",
    "UsageError": "errors",
    "Guest": "guest",
    "PIPE": "process",
    "Pool": "pool",
    "Process": "process",
    "Result": "spec",
    "Usage": "spec",
    "collect": "translate",
    "stage": "translate",
}

__all__ = [
    "PIPE",
    "ArchiveError",
    "BuildError",
    "CommandFailed",
    "DefinitionError",
    "Detached",
    "Guest",
    "GuestLost",
    "GuestctlError",
    "HostLacks",
    "ImageError",
    "Pool",
    "PoolError",
    "Process",
    "Result",
    "ShareError",
    "TreeError",
    "Usage",
    "UsageError",
    "__version__",
    "collect",
    "stage",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'guestctl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"guestctl.{home}"), name)
