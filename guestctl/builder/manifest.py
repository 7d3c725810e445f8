"""What a manifest says of an artifact: its files, where it comes from, and SPDX data of that."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import libarchive

from guestctl.builder.components import Component
from guestctl.builder.keys import Inputs
from guestctl.builder.products import Rules
from guestctl.version import __version__

__all__ = ["VERSION", "describe", "files_of"]

VERSION = 1
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def describe(
    component: Component,
    inputs: Inputs,
    tar: Path,
    *,
    source: str,
    seconds: Mapping[str, float],
    guest: str,
    ledger: Mapping[str, int],
    local: Mapping[str, int],
) -> dict[str, Any]:
    """The manifest. `seconds` are those of each step, `source` is the commit or the SHA-256.

    `ledger` says how many calls of compilers ran where, `local` why so many in the guest.
    """
    rules = Rules(component.name, component.chunk.products)
    return {
        "version": VERSION,
        "name": component.name,
        "arch": inputs.arch,
        "key": inputs.key,
        "guestctl": __version__,
        "guest": guest,
        "seconds": dict(seconds),
        "inputs": asdict(inputs),
        "ledger": dict(ledger),
        "local": dict(local),
        "spdx": _spdx(component, inputs, source),
        "parts": list(rules.parts),
        "files": list(files_of(tar, rules)),
    }


def files_of(tar: Path, rules: Rules | None = None) -> Iterator[dict[str, Any]]:
    """Each entry of an archive: path, type, owner, mode, and size and SHA-256 or link target.

    Names that are not UTF-8 have their bytes as Python's surrogate escapes. `product` is the part
    that it belongs to, where the artifact has parts.
    """
    homes: dict[str, str] = {}
    with libarchive.file_reader(os.fspath(tar)) as archive:
        for entry in archive:
            path = _text(entry.pathname)
            facts: dict[str, Any] = {
                "path": path.rstrip("/"),
                "type": _TYPES.get(stat.S_IFMT(entry.filetype), "other"),
                "mode": f"{entry.mode & 0o7777:04o}",
                "uid": entry.uid,
                "gid": entry.gid,
            }
            if entry.linkpath:
                facts["target"] = _text(entry.linkpath)
                facts["type"] = "hard link" if entry.islnk else "link"
            elif facts["type"] == "file":
                digest = hashlib.sha256()
                for block in entry.get_blocks():
                    digest.update(block)
                facts["size"] = entry.size
                facts["sha256"] = digest.hexdigest()
            if rules and rules.parts:
                # A further name of a file goes where the file is.
                home = homes.get(facts["target"]) if facts["type"] == "hard link" else None
                facts["product"] = homes[facts["path"]] = home or rules.of(facts["path"])
            yield facts


def _text(name: str | bytes) -> str:
    return os.fsdecode(name) if isinstance(name, bytes) else name


def _spdx(component: Component, inputs: Inputs, source: str) -> dict[str, Any]:
    """A document of SPDX 2.3 with one package: what was built, and from what."""
    chunk = component.chunk
    package: dict[str, Any] = {
        "SPDXID": "SPDXRef-Package",
        "name": component.name,
        "versionInfo": chunk.ref or Path(chunk.tarball).name or "none",
        "downloadLocation": _location(chunk.repo, chunk.tarball, source),
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    }
    if chunk.sha256:
        package["checksums"] = [{"algorithm": "SHA256", "checksumValue": chunk.sha256}]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{component.name}-{inputs.arch}",
        "documentNamespace": f"urn:guestctl:artifact:{inputs.key}",
        "packages": [package],
    }


def _location(repo: str, tarball: str, source: str) -> str:
    if repo:
        return f"git+{repo}@{source}"
    return tarball or "NONE"
