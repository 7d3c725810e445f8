"""Offload for one leased guest: whether it is on, and all that it holds while it is.

Most leases come and go without a call of a compiler, and what carries those out takes as long to
load as a guest takes to come: so that is brought in by the first call.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guestctl.agent import Agent, Job
from guestctl.errors import GuestctlError, OffloadError
from guestctl.offload.hosts import HostBook
from guestctl.offload.ledger import JobRecord, Ledger
from guestctl.offload.names import DISTCC, OFFLOAD, STUBS
from guestctl.offload.slots import Slots
from guestctl.spec import Result

if TYPE_CHECKING:
    from guestctl.offload.service import Service
    from guestctl.offload.tools import Tools

__all__ = ["Offload", "why_off"]

_MEMORY_PER_STUB = 60
_log = logging.getLogger(__name__)


def why_off(mode: str, arch: str, cache: Path) -> str:
    """Why nothing can be offloaded for `arch` on this host; empty when it can."""
    if mode == "off":
        return "not asked for"
    from guestctl.toolchain import installed
    from guestctl.view import why_no_view

    if not installed(arch, cache_dir=cache):
        return f"no toolchain of {arch} is installed (guestctl toolchain install {arch})"
    return why_no_view(cache)


class Offload:
    """Serves the stubs of a guest until `close`, as its GuestSpec wants it."""

    def __init__(self, agent: Agent, spec: Mapping[str, Any]) -> None:
        self.slots = Slots(Path(spec["runtime"]))
        self.ledger = Ledger(Path(spec["ledger"]))
        self._hosts = HostBook(Path(spec["config"]), Path(spec["runtime"]))
        # Not only those of this host: each may compile for this guest.
        self._at_once = self.slots.count + self._hosts.slots()
        self._agent = agent
        self._spec = spec
        self._lock = threading.Lock()
        self._parts: tuple[Tools, Service] | None = None
        self._closed = False
        self._counting = threading.Lock()
        self._waiting = 0
        for name in (OFFLOAD, DISTCC):
            agent.offer(name, partial(self._opened, name))

    def _opened(self, name: bytes, stream: Job) -> None:
        """The first streams come here, until the service has its own offers."""
        with self._counting:
            self._waiting += 1
        threading.Thread(target=self._begin, args=(name, stream), daemon=True).start()

    def _begin(self, name: bytes, stream: Job) -> None:
        try:
            with self._lock:
                if self._parts is None and not self._closed:
                    self._parts = self._made()
            if self._parts is None:
                raise OffloadError("the lease is over")
            self._parts[1].opened(name, stream)
        except (GuestctlError, OSError) as error:
            _log.warning("nothing is offloaded: %s", error)
            # Whoever still waits then runs its own program.
            self._agent.end_stdin(stream)
        finally:
            with self._counting:
                self._waiting -= 1

    def _made(self) -> tuple[Tools, Service]:
        """What carries calls out; raises OffloadError, ImageError."""
        from guestctl.offload.service import Service
        from guestctl.offload.tools import Tools
        from guestctl.toolchain import installed
        from guestctl.view import Tree

        spec = self._spec
        model, cache = str(spec["security_model"]), Path(spec["cache"])
        tools = Tools(
            {
                "work": Tree(Path(spec["work"]), model),
                "base": Tree(Path(spec["base"]), model, fixed=True),
                "root": Tree(_root_folder(spec), None, fixed=True),
            },
            installed(str(spec["arch"]), cache_dir=cache),
            self.slots,
            cache_dir=cache,
            runtime=Path(spec["runtime"]),
            hosts=self._hosts,
            distcc_only=spec["offload"] == "distcc",
        )
        service = Service(
            self._agent, tools, self.ledger, guest=str(spec["name"]), slots=self._at_once
        )
        return tools, service

    @property
    def busy(self) -> bool:
        """Whether a call is under way, or not in the ledger yet."""
        return self._waiting > 0 or bool(self._parts and self._parts[1].busy)

    def renew(self) -> None:
        """To be called when trees that do not change were changed after all, between mounts."""
        if self._parts:
            self._parts[0].renew()

    def path(self, path: bytes | str) -> str:
        """A command's PATH with the stubs in front."""
        return f"{os.fsdecode(STUBS)}:{os.fsdecode(path)}"

    def jobs(self, memory: int) -> int:
        """A good number for `make -j` in a guest with so many MiB: a stub waits, and takes little
        memory; but each may have to run its compiler in the guest after all."""
        return min(2 * self._at_once, memory // _MEMORY_PER_STUB)

    def ended(self, job: int, result: Result) -> None:
        """A command has ended: if it has called tools, the ledger knows it as a build."""
        if not self._parts or not self.ledger.tally(job):
            return
        self.ledger.add(
            JobRecord(
                guest=str(self._spec["name"]),
                job=job,
                argv=[word.decode(errors="backslashreplace") for word in result.argv],
                status=result.status,
                begin=result.began,
                seconds=result.seconds,
                session=self._parts[1].session,
            )
        )

    def too_local(self, job: int, percent: float) -> str:
        """What to say when more than `percent` of a job's calls ran in the guest; else nothing."""
        tally = self.ledger.tally(job)
        calls, local = tally.total(), tally["guest"]
        if 100 * local <= percent * calls:
            return ""
        share = 100 * local / calls
        return f"{local} of {calls} calls ({share:.1f} %) ran in the guest, {percent:g} % allowed"

    def close(self) -> None:
        """Ends what runs on the host; a second time does nothing. The agent's session must have
        been closed before."""
        with self._lock:
            self._closed = True
        if self._parts:
            tools, service = self._parts
            service.close()
            tools.close()
        self.ledger.close()


def _root_folder(spec: Mapping[str, Any]) -> Path:
    """The root file system of a guest's image, with real links."""
    from guestctl import image

    for made in image.made(spec["arch"], cache_dir=Path(spec["cache"])):
        if str(made.root) == spec["root"]:
            return image.root_folder(made)
    raise OffloadError("the guest's image is no longer in the cache")
