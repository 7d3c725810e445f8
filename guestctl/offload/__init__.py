from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guestctl.offload.ledger import Entry, Ledger, Summary, read_ledger, summarize
    from guestctl.offload.offload import Offload, why_off

# Most of this is not needed before a guest calls: each part is loaded when it is.
_HOMES = {
    "Entry": "ledger",
    "Ledger": "ledger",
    "Offload": "offload",
    "Summary": "ledger",
    "read_ledger": "ledger",
    "summarize": "ledger",
    "why_off": "offload",
}

__all__ = ["Entry", "Ledger", "Offload", "Summary", "read_ledger", "summarize", "why_off"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'guestctl.offload' has no attribute {name!r}")
    return getattr(importlib.import_module(f"guestctl.offload.{home}"), name)
