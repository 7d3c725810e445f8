"""From the guest's call to the host's, or a refusal. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guestctl.toolchain.facts import Pairing

__all__ = ["ENVIRONMENT", "Command", "Refusal", "translate"]

# What of the guest's environment bears on these programs: the stub sends no more than these.
ENVIRONMENT: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Command:
    """What to run in the view. `program` is absolute there (/.tc/bin/...); `environ` is whole.

    `makes_objects`: outputs must be checked to be of the target before the guest gets them.
    """

    program: bytes
    argv: tuple[bytes, ...]
    environ: Mapping[bytes, bytes]
    makes_objects: bool = True


@dataclass(frozen=True)
class Refusal:
    """Why the call must run in the guest."""

    reason: str


def translate(
    pairing: Pairing, program: bytes, argv: Sequence[bytes], environ: Mapping[bytes, bytes]
) -> Command | Refusal:
    """Returns what the host must run so that the outcome is that of the guest's own program.

    `program` is the absolute path in the guest of what the guest would have executed (not the
    stub, but the next of its name in PATH), `argv` the call's with argv[0], `environ` what
    ENVIRONMENT names of the caller's.
    """
    raise NotImplementedError
