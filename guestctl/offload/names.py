"""What guest and host call the same: guest-init and the image have these names too."""

from __future__ import annotations

__all__ = ["DISTCC", "OFFLOAD", "STUBS"]

# Services that a guest opens streams to.
OFFLOAD = b"offload"
DISTCC = b"distcc"
STUBS = b"/tools/offload/bin"  # in the guest, and in every root of a command
