"""What users are told of compile hosts: the list, and whether a new one would be of use."""

from __future__ import annotations

from typing import Any

from guestctl.errors import OffloadError
from guestctl.offload.distccd import HostFailed
from guestctl.offload.farside import LANGUAGES, examine
from guestctl.offload.hosts import CompileHost, HostBook
from guestctl.offload.machines import status_file
from guestctl.offload.slots import Slots
from guestctl.places import Places
from guestctl.rundir import read_json
from guestctl.toolchain import installed
from guestctl.view import View

__all__ = ["check_host", "host_rows"]


def host_rows(places: Places) -> list[dict[str, Any]]:
    """Facts of each compile host; `verdict` is what the last build that looked has found."""
    slots = Slots(places.runtime)
    rows = []
    for listed in HostBook(places.config, places.runtime).hosts():
        host = listed.host
        said = read_json(status_file(places.runtime, host))
        rows.append(
            {
                "host": host.name,
                "limit": host.limit,
                "lzo": host.lzo,
                "state": listed.state,
                "origin": listed.origin,
                "busy": host.limit - slots.free(host),
                "verdict": said.get("state", "unused"),
                "why": said.get("why", ""),
            }
        )
    return rows


def check_host(host: CompileHost, places: Places) -> list[str]:
    """Compares a host's compilers with those of the toolchains, and says for which it is good.

    Raises OffloadError, with what differs, when that is none.
    """
    toolchains = installed(cache_dir=places.cache)
    if not toolchains:
        raise OffloadError(
            "there is no toolchain to compare with", hint="guestctl toolchain install ARCH"
        )
    found, failures = [], []
    for toolchain in toolchains:
        with View({}, toolchain.path, cache_dir=places.cache) as view:
            for language in LANGUAGES:
                try:
                    far = examine(host, toolchain, view, language)
                except HostFailed as error:
                    failures.append(error)
                else:
                    name = far.name.decode(errors="replace")
                    found.append(f"{host.name}: {toolchain.arch}, {language}: {name}")
    if not found:
        raise failures[0]
    return found
