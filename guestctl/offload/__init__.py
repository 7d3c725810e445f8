"""Offload: the host does the work of a guest's compiler, so that nobody sees a difference.

Layer 3. A stub in the guest asks (guest-init/stub.c), the service here answers: by running the
host's tool in a confined view of the same files, or by sending the call on to distcc or to the
guest's own tool. Each call is in the ledger, with the reason.
"""

from __future__ import annotations

from guestctl.offload.ledger import Entry, Ledger, Summary, read_ledger, summarize
from guestctl.offload.offload import MODES, Offload, why_off

__all__ = [
    "MODES",
    "Entry",
    "Ledger",
    "Offload",
    "Summary",
    "read_ledger",
    "summarize",
    "why_off",
]
