"""Reproduction bundles: one command with all that it saw, in one file, to be run again elsewhere.

A tar file of `manifest.json` (what was run, in what, and how it ended), `share.tar.zst` (the share
as it was before), `console.log` and `ledger.jsonl`. The image is named by its id and not in it:
`guestctl image export` has it with its inputs.
"""

from __future__ import annotations

import io
import json
import os
import platform
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from guestctl.errors import GuestctlError, UsageError
from guestctl.image import Image
from guestctl.offload.ledger import read_ledger
from guestctl.qemu.accel import qemu_version
from guestctl.rundir import GuestDir
from guestctl.share import Share
from guestctl.spec import Result
from guestctl.targets import target
from guestctl.translate import collect, stage
from guestctl.version import __version__

__all__ = ["Order", "Recording", "read_order", "unpack_share"]

_VERSION = 1
_MANIFEST = "manifest.json"
_SHARE = "share.tar.zst"
_MANIFEST_MAX = 16 << 20
_CONSOLE_MAX = 4 << 20


@dataclass(frozen=True)
class Order:
    """What was run. Paths are the guest's; `image` is an id, `memory` in MiB, times in seconds."""

    arch: str
    image: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    root: str | None = None
    user: str = "0:0"
    timeout: float | None = None
    idle_timeout: float | None = None
    security_model: str = "mapped-file"
    memory: int = 0
    offload: str = "auto"


class Recording:
    """Made before the command is run, while the share is the host's; `write` makes the bundle."""

    def __init__(self, out: Path, order: Order, image: Image, share: Share) -> None:
        """Packs the share beside `out`. Raises TreeError, ShareError, and UsageError."""
        self._out = out
        self._order = order
        self._image = image
        try:
            self._folder = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
        except OSError as error:
            raise UsageError(f"{out}: {error.strerror}") from None
        try:
            self._warnings = collect(
                share, Path(self._folder.name) / _SHARE, security_model=share.security_model
            ).warnings
        except BaseException:
            self._folder.cleanup()
            raise

    def write(self, result: Result, folder: GuestDir, ledger: Path) -> None:
        """Writes the bundle as a whole; `folder` is that of the guest. Raises GuestctlError."""
        parts = Path(self._folder.name)
        facts = {
            "version": _VERSION,
            "order": asdict(self._order),
            "result": result.as_json(),
            "console": folder.console_tail(),
            "warnings": list(self._warnings),
            "versions": self._versions(),
        }
        try:
            (parts / "console.log").write_bytes(_end_of(folder.console))
            (parts / "ledger.jsonl").write_text(_calls_of(ledger, result))
            whole = parts / "bundle"
            with tarfile.open(whole, "w", format=tarfile.PAX_FORMAT) as tar:
                _add(tar, _MANIFEST, json.dumps(facts, indent=1).encode() + b"\n")
                for name in ("console.log", "ledger.jsonl"):
                    _add(tar, name, (parts / name).read_bytes())
                member = tarfile.TarInfo(_SHARE)
                member.size = (parts / _SHARE).stat().st_size
                with open(parts / _SHARE, "rb") as file:
                    tar.addfile(member, file)
            os.replace(whole, self._out)
        except OSError as error:
            raise GuestctlError(f"{self._out}: {error.strerror}") from None

    def close(self) -> None:
        """Removes what was made beside the bundle."""
        self._folder.cleanup()

    def _versions(self) -> dict[str, Any]:
        facts = self._image.facts()
        return {
            "guestctl": __version__,
            "image": {"id": self._image.id, "files": facts.get("files")},
            "qemu": qemu_version(target(self._order.arch)),
            "host": f"{platform.system()} {platform.release()} {platform.machine()}",
            "python": platform.python_version(),
        }


def read_order(bundle: Path) -> tuple[Order, dict[str, Any]]:
    """What was run, and how that ended as `Result.as_json` has it; UsageError for no bundle."""
    with _Reader(bundle) as tar:
        first = tar.next()
        if first is None or first.name != _MANIFEST or first.size > _MANIFEST_MAX:
            raise ValueError("it does not begin with a manifest")
        facts = json.load(tar.extractfile(first) or io.BytesIO())
        if facts["version"] != _VERSION:
            raise ValueError(f"its version is {facts['version']!r}, not {_VERSION}")
        known = {part.name for part in fields(Order)}
        given = {name: value for name, value in facts["order"].items() if name in known}
        order = Order(**{**given, "argv": tuple(given["argv"])})
        _check(order)
        return order, dict(facts["result"])
    raise AssertionError  # a context manager that swallows nothing


def unpack_share(bundle: Path, tree: Path, model: str) -> None:
    """Stages the share into a tree; raises UsageError, ArchiveError and TreeError."""
    with _Reader(bundle) as tar:
        for member in tar:
            if member.name == _SHARE and member.isfile():
                source = tar.extractfile(member)
                assert source is not None
                stage(source, tree, security_model=model)  # type: ignore[arg-type]
                return
        raise ValueError("it has no share")


class _Reader:
    """The tar file; whatever is wrong with it is a UsageError."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle

    def __enter__(self) -> tarfile.TarFile:
        try:
            self._tar = tarfile.open(self._bundle, "r:")
        except (OSError, tarfile.TarError) as error:
            raise self._bad(error) from None
        return self._tar

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._tar.close()
        known = (tarfile.TarError, OSError, EOFError, ValueError, KeyError, TypeError)
        if isinstance(error, (*known, AttributeError)):
            raise self._bad(error) from None

    def _bad(self, error: Exception) -> UsageError:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        return UsageError(f"{self._bundle}: no bundle of a run: {why}")


def _check(order: Order) -> None:
    """Raises ValueError for values that no recording writes."""
    texts = [order.arch, order.image, order.cwd, order.user, order.security_model, order.offload]
    texts += [*order.argv, *order.env, *order.env.values(), order.root or ""]
    numbers = (order.timeout, order.idle_timeout)
    if not all(isinstance(text, str) for text in texts) or not order.argv:
        raise ValueError("its command is damaged")
    if not all(value is None or isinstance(value, int | float) for value in numbers):
        raise ValueError("its time-outs are damaged")
    if not isinstance(order.memory, int):
        raise ValueError("its memory is damaged")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _end_of(console: Path) -> bytes:
    try:
        return console.read_bytes()[-_CONSOLE_MAX:]
    except FileNotFoundError:
        return b""


def _calls_of(ledger: Path, result: Result) -> str:
    """The ledger's lines of one command."""
    if not ledger.exists():
        return ""
    calls = [
        entry
        for entry in read_ledger(ledger)
        if (entry.guest, entry.job) == (result.guest, result.job) and entry.begin >= result.began
    ]
    return "".join(json.dumps(asdict(entry)) + "\n" for entry in calls)
