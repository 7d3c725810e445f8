from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guestctl.offload.builds import PARTS, Build, builds_of
    from guestctl.offload.hostlist import check_host, host_rows
    from guestctl.offload.hosts import CompileHost, HostBook, parse_host
    from guestctl.offload.ledger import (
        Entry,
        JobRecord,
        Ledger,
        Summary,
        read_jobs,
        read_ledger,
        summarize,
    )
    from guestctl.offload.offload import Offload, why_off

# Most of this is not needed before a guest calls: each part is loaded when it is.
_HOMES = {
    "PARTS": "builds",
    "Build": "builds",
    "CompileHost": "hosts",
    "Entry": "ledger",
    "HostBook": "hosts",
    "JobRecord": "ledger",
    "Ledger": "ledger",
    "Offload": "offload",
    "Summary": "ledger",
    "builds_of": "builds",
    "check_host": "hostlist",
    "host_rows": "hostlist",
    "parse_host": "hosts",
    "read_jobs": "ledger",
    "read_ledger": "ledger",
    "summarize": "ledger",
    "why_off": "offload",
}

__all__ = [
    "PARTS",
    "Build",
    "CompileHost",
    "Entry",
    "HostBook",
    "JobRecord",
    "Ledger",
    "Offload",
    "Summary",
    "builds_of",
    "check_host",
    "host_rows",
    "parse_host",
    "read_jobs",
    "read_ledger",
    "summarize",
    "why_off",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'guestctl.offload' has no attribute {name!r}")
    return getattr(importlib.import_module(f"guestctl.offload.{home}"), name)
