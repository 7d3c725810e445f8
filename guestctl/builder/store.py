"""Artifacts on disk: written whole or not at all, checked when they are read.

    DATA/artifacts/KEY/artifact.tar.zst   what was built
                       manifest.json      all about it
                       build.log.gz       what the commands said
                       part-NAME.tar.zst  what belongs to a part, where there are parts
                       sums               SHA-256 of all these, and of nothing else
    DATA/locks/KEY                        held by who builds it
               builders                   shared by all who build anything

A folder gets its name when it is whole; what a killed process leaves has another name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestctl.builder.products import part_file
from guestctl.errors import BuildError

__all__ = ["Artifact", "Store"]

TAR = "artifact.tar.zst"
MANIFEST = "manifest.json"
LOG = "build.log.gz"
_SUMS = "sums"
_BUILDERS = "builders"
_POLL = 0.2
_ABANDONED = 24 * 3600  # seconds after which nobody works on a folder without a name any more


@dataclass(frozen=True)
class Artifact:
    """One artifact of the store. `size` is in bytes, `used` when it was last asked for."""

    key: str
    folder: Path
    manifest: Mapping[str, Any]
    size: int
    used: float

    @property
    def name(self) -> str:
        return str(self.manifest.get("name", "?"))

    @property
    def tar(self) -> Path:
        return self.folder / TAR

    def part(self, name: str) -> Path:
        """The archive of one of its parts; raises BuildError when it has no such."""
        parts = self.manifest.get("parts", [])
        if name not in parts:
            known = f"its parts are {', '.join(parts)}" if parts else "it was not split"
            raise BuildError(f"{self.name} has no part {name!r}", hint=known)
        return self.folder / part_file(name)

    @property
    def log(self) -> Path:
        return self.folder / LOG


class Store:
    """The artifacts below `folder`, shared by all builders of a user."""

    def __init__(self, folder: Path) -> None:
        self._artifacts = folder / "artifacts"
        self._locks = folder / "locks"
        for each in (self._artifacts, self._locks):
            each.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Artifact | None:
        """The artifact, after its bytes were checked. One that is damaged is removed: it counts as
        not there.
        """
        folder = self._artifacts / key
        if not folder.exists():
            return None
        if not _is_sound(folder):
            self._remove(folder)
            return None
        os.utime(folder)
        return _artifact(folder)

    def peek(self, key: str) -> Artifact | None:
        """The same without reading the bytes: for lists."""
        folder = self._artifacts / key
        try:
            return _artifact(folder)
        except (OSError, ValueError):
            return None

    def all(self) -> list[Artifact]:
        """All of them, the newest first."""
        found = [self.peek(folder.name) for folder in self._artifacts.iterdir() if _named(folder)]
        return sorted((each for each in found if each), key=lambda each: -each.used)

    def put(self, key: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> Artifact:
        """Adds an artifact; `files` are moved into it. One that is there already stays."""
        aside = self._artifacts / f".{key[:16]}.{os.getpid()}.{secrets.token_hex(4)}"
        aside.mkdir()
        try:
            for name, path in files.items():
                shutil.move(path, aside / name)
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            sums = "".join(f"{_digest(path)}  {path.name}\n" for path in sorted(aside.iterdir()))
            (aside / _SUMS).write_text(sums)
            for path in aside.iterdir():
                _flush(path)
            with contextlib.suppress(OSError):  # somebody else was quicker
                os.rename(aside, self._artifacts / key)
                _flush(self._artifacts)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return _artifact(self._artifacts / key)

    def remove(self, key: str) -> None:
        """Forgets an artifact; one that is not there is no error."""
        folder = self._artifacts / key
        if folder.exists():
            self._remove(folder)

    def _remove(self, folder: Path) -> None:
        """Out of its name first, so that nobody finds half of it."""
        aside = folder.with_name(f".{folder.name[:16]}.gone.{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)

    def find(self, word: str) -> Artifact:
        """The artifact whose key begins with `word`, or the newest of that name."""
        found = [each for each in self.all() if each.key.startswith(word) or each.name == word]
        by_key = {each.key for each in found if each.name != word}
        if not found:
            raise BuildError(f"there is no artifact {word!r}", hint="guestctl artifact list")
        if len(by_key) > 1:
            raise BuildError(f"{word!r} is the beginning of {len(by_key)} keys", hint="say more")
        return found[0]

    def collect_garbage(self, bound: int, keep: frozenset[str] = frozenset()) -> list[Artifact]:
        """Removes the longest unused until the rest is at most `bound` bytes; returns what went.

        What `keep` names stays. While somebody builds, so does all that was used lately.
        """
        for folder in self._artifacts.iterdir():
            if not _named(folder) and time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
        found = self.all()
        total = sum(each.size for each in found)
        gone = []
        with self._quiet() as quiet:
            for each in reversed(found):
                if total <= bound:
                    break
                if each.key not in keep and (quiet or time.time() - each.used > _ABANDONED):
                    self.remove(each.key)
                    total -= each.size
                    gone.append(each)
        return gone

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """For as long as this lasts, nobody collects what a build may still read."""
        with self._lock(_BUILDERS) as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[bool]:
        """Whether nobody builds, and then nobody begins to."""
        with self._lock(_BUILDERS) as handle:
            yield _locked(handle)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[int]:
        handle = os.open(self._locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield handle
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def building(
        self, key: str, stopped: Callable[[], bool], waits: Callable[[], None]
    ) -> Iterator[bool]:
        """Only one process builds an artifact: while another does, `waits` is called and we wait.

        Yields whether the caller is to build it: false when the other one has, or `stopped` says
        that there is no point any more.
        """
        with self._lock(key) as handle:
            if not _locked(handle):
                waits()
                while not _locked(handle):
                    if stopped():
                        yield False
                        return
                    time.sleep(_POLL)
            yield not (self._artifacts / key).exists()


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _named(folder: Path) -> bool:
    return not folder.name.startswith(".")


def _artifact(folder: Path) -> Artifact:
    manifest = json.loads((folder / MANIFEST).read_text())
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Artifact(folder.name, folder, manifest, size, folder.stat().st_mtime)


def _is_sound(folder: Path) -> bool:
    """Whether the bytes are those that were written."""
    try:
        lines = (folder / _SUMS).read_text().splitlines()
        sums = {line[66:]: line[:64] for line in lines}
        return TAR in sums and all(_digest(folder / name) == sums[name] for name in sums)
    except (OSError, ValueError):
        return False


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """A power cut must not leave a whole name with half the bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
