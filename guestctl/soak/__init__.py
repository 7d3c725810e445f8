"""A pool under load while things are killed at random: what must hold then, and whether it did.

Each job has an outcome that is known beforehand, and is repeated when its guest was lost under it.
A job that never came to its outcome is lost; one that reports it without having done its work has
succeeded falsely. Neither may happen, whatever is killed, and nothing may be left at the end.
"""

from __future__ import annotations

from guestctl.soak.report import Report
from guestctl.soak.soak import Soak, SoakOptions

__all__ = ["Report", "Soak", "SoakOptions"]
