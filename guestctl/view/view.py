"""The host side of a view: one worker process, and calls from any thread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from guestctl.errors import ViewError
from guestctl.view.calls import Call, Limits, Outcome, Tree, check_call

__all__ = ["View", "why_no_view"]


class View:
    """Tools of one toolchain over the trees of one guest, for as long as a lease lasts.

    :param trees: by the names that mounts of calls have for them.
    :param toolchain: the folder that calls see at TOOLCHAIN.
    :param cache_dir: where the worker is compiled to, once.
    :param way: `overlay`, `fuse`, or `auto` for the better one that works here.
    :param fuse: the device node of FUSE.
    :raise ViewUnavailable: this host has no confined view, with the reason.
    """

    def __init__(
        self,
        trees: Mapping[str, Tree],
        toolchain: Path,
        *,
        cache_dir: Path,
        limits: Limits | None = None,
        way: str = "auto",
        fuse: Path = Path("/dev/fuse"),
    ) -> None:
        self.trees = dict(trees)
        self.toolchain = toolchain
        self.limits = limits or Limits()

    def __enter__(self) -> View:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, call: Call) -> Outcome:
        """Runs a tool to its end; from any thread, several at once.

        :raise UsageError: the call makes no sense (a relative path, no such tree).
        :raise ViewError: the view could not be made or was lost: the call must run in the guest.
        """
        check_call(call)
        raise ViewError("not yet")

    def cancel(self, call: Call) -> None:
        """Kills a running call (found by identity): it ends with `trouble` `cancelled`."""

    def close(self) -> None:
        """Kills all calls and the worker."""


def why_no_view(cache_dir: Path) -> str:
    """Why this host cannot confine a tool, for `doctor`; empty when it can."""
    return ""
