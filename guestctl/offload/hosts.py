"""Further compile hosts: machines that run distccd, named as distcc names them.

`compile_hosts:` in the user's config lists those that are always there. `offload hosts` adds and
drains others while builds run: a file in the user's run directory, which all of them look at.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestctl.errors import GuestctlError, OffloadError, UsageError
from guestctl.rundir import read_json, write_json

__all__ = ["ACTIVE", "DRAINING", "CompileHost", "HostBook", "Listed", "parse_host"]

ACTIVE, DRAINING, _REMOVED = "active", "draining", "removed"
_PORT = 3632
_LIMIT = 4  # distcc's own default
_LIMIT_MAX = 256
_HOST = re.compile(
    r"(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?"
    r"(?:/(?P<limit>\d{1,3}))?(?P<options>(?:,[a-z]+)*)"
)


@dataclass(frozen=True)
class CompileHost:
    """A distccd: how many compilations it takes at once, and whether they go compressed."""

    address: str
    port: int = _PORT
    limit: int = _LIMIT
    lzo: bool = False

    @property
    def name(self) -> str:
        """What tells it from others."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}"

    def __str__(self) -> str:
        return f"{self.name}/{self.limit}{',lzo' if self.lzo else ''}"


@dataclass(frozen=True)
class Listed:
    """A compile host, whether it is active or draining, and who has named it: config or added."""

    host: CompileHost
    state: str
    origin: str


def parse_host(text: str) -> CompileHost:
    """Reads HOST[:PORT][/LIMIT][,lzo]; raises UsageError."""
    match = _HOST.fullmatch(text)
    hint = "HOST[:PORT][/LIMIT][,lzo], as distcc has it"
    if match is None:
        raise UsageError(f"not a compile host: {text!r}", hint=hint)
    if match["host"] == "localhost":
        # To distcc that is no server at all.
        raise UsageError("this host compiles anyway", hint="127.0.0.1 names a distccd on it")
    options = match["options"].split(",")[1:]
    for option in options:
        if option != "lzo":
            raise UsageError(f"{text}: the option {option} is not known", hint=hint)
    port = int(match["port"] or _PORT)
    limit = int(match["limit"] or _LIMIT)
    if not 0 < port < 1 << 16 or not 0 < limit <= _LIMIT_MAX:
        raise UsageError(f"{text}: a port or limit that cannot be", hint=hint)
    return CompileHost(match["host"].strip("[]"), port, limit, "lzo" in options)


class HostBook:
    """The compile hosts of a user. `config` and `runtime` are the user's folders."""

    def __init__(self, config: Path, runtime: Path) -> None:
        self._config = config / "config.yaml"
        self._state = runtime / "compile-hosts.json"
        self._known: list[Listed] = []
        self._stamps: object = None

    def hosts(self) -> list[Listed]:
        """Those that are not removed, as they are now; raises UsageError, OffloadError, HostLacks.

        Files that have not changed are not read again.
        """
        stamps = (_stamp(self._config), _stamp(self._state))
        if stamps != self._stamps:
            self._known = self._read()
            self._stamps = stamps
        return self._known

    def slots(self) -> int:
        """How many compilations the active ones take at once; none when the list is wrong."""
        try:
            return sum(listed.host.limit for listed in self.hosts() if listed.state == ACTIVE)
        except GuestctlError:
            return 0

    def add(self, host: CompileHost) -> None:
        """Adds a host, or takes a drained one up again."""
        with self._changing() as entries:
            entries[host.name] = {"host": str(host), "state": ACTIVE}

    def drain(self, host: CompileHost) -> None:
        """Gives it no more compilations; those that it has end there. Raises UsageError."""
        self._change(host, DRAINING)

    def remove(self, host: CompileHost) -> None:
        """As `drain`, and it is no longer listed; one of the config stays away until it is added
        again, or the run directory is gone. Raises UsageError."""
        self._change(host, _REMOVED)
        if host.name not in {each.name for each in self._configured()}:
            with self._changing() as entries:
                entries.pop(host.name, None)

    def _change(self, host: CompileHost, state: str) -> None:
        known = {listed.host.name: listed.host for listed in self._read()}
        if host.name not in known:
            raise UsageError(f"there is no compile host {host.name}", hint="guestctl offload hosts")
        with self._changing() as entries:
            entries[host.name] = {"host": str(known[host.name]), "state": state}

    def _read(self) -> list[Listed]:
        found = {host.name: Listed(host, ACTIVE, "config") for host in self._configured()}
        for name, entry in self._entries().items():
            host = parse_host(str(entry.get("host", "")))
            origin = found[name].origin if name in found else "added"
            found[name] = Listed(host, str(entry.get("state")), origin)
        for listed in found.values():
            if listed.host.lzo:
                from guestctl.offload import lzo

                lzo.require()
        return [listed for listed in found.values() if listed.state in (ACTIVE, DRAINING)]

    def _configured(self) -> Sequence[CompileHost]:
        if not self._config.exists():
            return ()
        import yaml

        try:
            facts = yaml.safe_load(self._config.read_text()) or {}
            found = facts.get("compile_hosts") or ()
            found = found.split() if isinstance(found, str) else list(found)
            return [parse_host(str(text)) for text in found]
        except UsageError as error:
            raise UsageError(f"{self._config}: compile_hosts: {error}", hint=error.hint) from None
        except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise UsageError(f"{self._config}: compile_hosts: {first}") from None

    def _entries(self) -> dict[str, Any]:
        facts = read_json(self._state).get("hosts", {})
        if not isinstance(facts, dict):
            raise OffloadError(f"{self._state} is damaged", hint="remove it")
        return facts

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        lock = os.open(f"{self._state}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Held for the time of writing a small file.
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = self._entries()
            yield entries
            write_json(self._state, {"version": 1, "hosts": entries})
        finally:
            os.close(lock)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        facts = path.stat()
    except OSError:
        return ()
    return facts.st_ino, facts.st_mtime_ns, facts.st_size
