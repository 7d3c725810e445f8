"""Which compile hosts may compile for a toolchain at the moment.

A host is looked at before its first call, after each loss, and now and then; calls do not wait for
that: meanwhile they run here. What was found is also left in the user's run directory, for
`guestctl offload hosts` to show.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from guestctl.errors import GuestctlError
from guestctl.offload.distccd import HostFailed
from guestctl.offload.farside import FarCompiler, examine
from guestctl.offload.hosts import ACTIVE, CompileHost, HostBook, Listed
from guestctl.places import private_directory
from guestctl.rundir import write_json
from guestctl.toolchain import Toolchain
from guestctl.view import View

__all__ = ["Machines", "status_file"]

_TRUSTED = 600.0  # seconds until a host is looked at again: its packages may be upgraded
_BACKOFF = 15.0  # seconds until a host that was lost, or differs, is looked at again
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Verdict:
    compiler: FarCompiler | None
    until: float


class Machines:
    """The compile hosts as one lease has them. `view` gives the view of a toolchain."""

    def __init__(self, book: HostBook, runtime: Path, view: Callable[[Toolchain], View]) -> None:
        self._book = book
        self._runtime = runtime
        self._view = view
        self._verdicts: dict[tuple[CompileHost, str, str], _Verdict] = {}
        self._looking: set[tuple[CompileHost, str, str]] = set()
        self._complained = ""
        self._lock = threading.Lock()

    def listed(self) -> list[Listed]:
        """All that are known now; what is wrong with their list is logged, once."""
        try:
            return self._book.hosts()
        except GuestctlError as error:
            if str(error) != self._complained:
                self._complained = str(error)
                _log.warning("no compile hosts: %s", error)
            return []

    def ready(self, toolchain: Toolchain, language: str) -> list[FarCompiler]:
        """Those whose compiler is known to be the toolchain's; others are looked at meanwhile."""
        found = []
        for listed in self.listed():
            if listed.state != ACTIVE:
                continue
            key = (listed.host, toolchain.id, language)
            with self._lock:
                verdict = self._verdicts.get(key)
                fresh = verdict is not None and time.monotonic() < verdict.until
                if not fresh and key not in self._looking:
                    self._looking.add(key)
                    threading.Thread(
                        target=self._look, args=(key, toolchain), name="guestctl-hosts", daemon=True
                    ).start()
            if fresh and verdict is not None and verdict.compiler is not None:
                found.append(verdict.compiler)
        return found

    def lost(self, host: CompileHost, why: str) -> None:
        """A call has failed there: nothing more goes to it before it was looked at again."""
        until = time.monotonic() + _BACKOFF
        with self._lock:
            for key in [key for key in self._verdicts if key[0] == host]:
                self._verdicts[key] = _Verdict(None, until)
        self._tell(host, "lost", why)

    def _look(self, key: tuple[CompileHost, str, str], toolchain: Toolchain) -> None:
        host, _, language = key
        compiler, seconds = None, _BACKOFF
        try:
            compiler = examine(host, toolchain, self._view(toolchain), language)
            seconds = _TRUSTED
            self._tell(host, "good", "")
        except HostFailed as error:
            _log.info("compile host: %s", error)
            self._tell(host, "refused", str(error))
        except (GuestctlError, OSError) as error:
            # Of our own side: the lease may be over.
            _log.info("compile host %s was not looked at: %s", host.name, error)
        finally:
            with self._lock:
                self._verdicts[key] = _Verdict(compiler, time.monotonic() + seconds)
                self._looking.discard(key)

    def _tell(self, host: CompileHost, state: str, why: str) -> None:
        try:
            write_json(
                status_file(self._runtime, host), {"state": state, "why": why, "at": time.time()}
            )
        except OSError as error:
            _log.info("%s", error)


def status_file(runtime: Path, host: CompileHost) -> Path:
    """Where the last word on a host is."""
    return private_directory(runtime / "compile-hosts") / f"{host.name}.json"
