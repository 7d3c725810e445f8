"""Offload for one leased guest: whether it is on, and all that it holds while it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guestctl import image
from guestctl.agent import Agent
from guestctl.errors import OffloadError
from guestctl.offload.ledger import Ledger
from guestctl.offload.service import Service
from guestctl.offload.slots import Slots
from guestctl.offload.tools import STUBS, Tools
from guestctl.toolchain import installed
from guestctl.view import Tree, why_no_view

__all__ = ["MODES", "Offload", "why_off"]

MODES = ("auto", "distcc", "off")
_MEMORY_PER_STUB = 60


def why_off(mode: str, arch: str, cache: Path) -> str:
    """Why nothing can be offloaded for `arch` on this host; empty when it can."""
    if mode == "off":
        return "not asked for"
    if not installed(arch, cache_dir=cache):
        return f"no toolchain of {arch} is installed (guestctl toolchain install {arch})"
    return why_no_view(cache)


class Offload:
    """Serves the stubs of a guest until `close`. `trees` are work, base and root."""

    def __init__(
        self,
        agent: Agent,
        *,
        guest: str,
        arch: str,
        trees: Mapping[str, Tree],
        cache: Path,
        runtime: Path,
        ledger: Path,
        distcc_only: bool = False,
    ) -> None:
        self.slots = Slots(runtime)
        self.ledger = Ledger(ledger)
        self._tools = Tools(
            trees,
            installed(arch, cache_dir=cache),
            self.slots,
            cache_dir=cache,
            distcc_only=distcc_only,
        )
        self._service = Service(
            agent, self._tools, self.ledger, guest=guest, slots=self.slots.count
        )

    @classmethod
    def for_guest(cls, agent: Agent, spec: Mapping[str, Any]) -> Offload:
        """As a guest's GuestSpec wants it; raises OffloadError, ImageError."""
        model = str(spec["security_model"])
        return cls(
            agent,
            guest=str(spec["name"]),
            arch=str(spec["arch"]),
            trees={
                "work": Tree(Path(spec["work"]), model),
                "base": Tree(Path(spec["base"]), model, fixed=True),
                "root": Tree(_root_folder(spec), None, fixed=True),
            },
            cache=Path(spec["cache"]),
            runtime=Path(spec["runtime"]),
            ledger=Path(spec["ledger"]),
            distcc_only=spec["offload"] == "distcc",
        )

    @property
    def busy(self) -> bool:
        """Whether a call is under way, or not in the ledger yet."""
        return self._service.busy

    def renew(self) -> None:
        """To be called when trees that do not change were changed after all, between mounts."""
        self._tools.renew()

    def path(self, path: bytes | str) -> str:
        """A command's PATH with the stubs in front."""
        return f"{os.fsdecode(STUBS)}:{os.fsdecode(path)}"

    def jobs(self, memory: int) -> int:
        """A good number for `make -j` in a guest with so many MiB: a stub waits, and takes little
        memory; but each may have to run its compiler in the guest after all."""
        return min(2 * self.slots.count, memory // _MEMORY_PER_STUB)

    def too_local(self, job: int, percent: float) -> str:
        """What to say when more than `percent` of a job's calls ran in the guest; else nothing."""
        tally = self.ledger.tally(job)
        calls, local = tally.total(), tally["guest"]
        if 100 * local <= percent * calls:
            return ""
        share = 100 * local / calls
        return f"{local} of {calls} calls ({share:.1f} %) ran in the guest, {percent:g} % allowed"

    def close(self) -> None:
        """Ends what runs on the host; a second time does nothing."""
        self._service.close()
        self._tools.close()
        self.ledger.close()


def _root_folder(spec: Mapping[str, Any]) -> Path:
    """The root file system of a guest's image, with real links."""
    for made in image.made(spec["arch"], cache_dir=Path(spec["cache"])):
        if str(made.root) == spec["root"]:
            return image.root_folder(made)
    raise OffloadError("the guest's image is no longer in the cache")
