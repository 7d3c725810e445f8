"""The Debian archive's address, taken from the host's own apt sources. No network, no apt.

Both forms are read (sources.list(5)): one line an entry in `*.list`, deb822 in `*.sources`. Only
entries signed by Debian's archive keyring count, and only the suites that are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from guestctl.errors import HostLacks, ImageError

__all__ = ["KEYRING", "Entry", "host_entries", "private_sources"]

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_APT = Path("/etc/apt")


@dataclass(frozen=True)
class Entry:
    """One address of the archive and one suite that the host takes from it."""

    uri: str
    suite: str

    @property
    def security(self) -> bool:
        return _is_security(self.suite) or self.uri.rstrip("/").endswith("-security")


def host_entries(directory: Path = _APT) -> tuple[Entry, ...]:
    """Returns the Debian entries of apt's configuration in `directory`."""
    found: list[Entry] = []
    for file in [directory / "sources.list", *sorted((directory / "sources.list.d").glob("*"))]:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        if file.suffix == ".list":
            found += _one_line(text)
        elif file.suffix == ".sources":
            found += _deb822(text)
    return tuple(dict.fromkeys(found))


def private_sources(
    suites: Sequence[str],
    mirror: Sequence[str],
    kind: str,
    arch: str,
    entries: Sequence[Entry] | None = None,
) -> str:
    """Returns a sources.list with `suites`, from `mirror` or else from where the host takes them.

    `kind` is deb or deb-src. Raises HostLacks when there is no Debian archive to take them from.
    """
    for address in mirror:
        if not re.fullmatch(r"[a-z+]+:/[^\s\[\]]+", address):
            raise ImageError(f"mirror: {address!r} is not the address of an archive")
    if mirror:
        entries = [Entry(address, "") for address in mirror]
    elif entries is None:
        entries = host_entries()
    main = [entry.uri for entry in entries if not entry.security]
    security = [entry.uri for entry in entries if entry.security]
    if not main:
        raise HostLacks(
            "apt has no sources signed by Debian's keyring on this host",
            hint="name a Debian archive as mirror: in ~/.config/guestctl/config.yaml",
        )
    options = f"signed-by={KEYRING}"
    if kind == "deb":
        options = f"arch={arch} {options}"
    lines = []
    for suite in suites:
        for uri in dict.fromkeys(security if _is_security(suite) else main):
            lines.append(f"{kind} [{options}] {uri} {suite} main")
    return "\n".join(lines) + "\n"


def _is_security(suite: str) -> bool:
    return suite.endswith(("-security", "/updates"))


def _deb822(text: str) -> Iterator[Entry]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        keys = {
            name.lower(): " ".join(value.split())
            for name, value in re.findall(r"^([\w-]+):((?:.*\n?)(?:[ \t].*\n?)*)", paragraph, re.M)
        }
        enabled = keys.get("enabled", "yes").lower() not in ("no", "false", "0", "off")
        if enabled and "deb" in keys.get("types", "").split():
            yield from _entries(
                keys.get("uris", "").split(), keys.get("suites", "").split(),
                keys.get("signed-by", ""), keys.get("components", "").split(),
            )  # fmt: skip


def _one_line(text: str) -> Iterator[Entry]:
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line.strip())
        if match:
            signed = re.search(r"signed-by=(\S+)", match[1] or "", re.IGNORECASE)
            uris, suites = [match[2]], [match[3]]
            yield from _entries(uris, suites, signed[1] if signed else "", match[4].split())


def _entries(
    uris: list[str], suites: list[str], key: str, components: list[str]
) -> Iterator[Entry]:
    for uri in uris:
        # Without Signed-By any key counts: then the address has to look like Debian's.
        name = uri.rstrip("/").rpartition("/")[2]
        ours = Path(key).name.startswith("debian-archive-") if key else name.startswith("debian")
        if ours and "main" in components and not uri.startswith("cdrom:"):
            for suite in suites:
                yield Entry(uri.rstrip("/"), suite)
