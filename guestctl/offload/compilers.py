"""Which toolchain of the host stands for the compiler that a process in a guest would run."""

from __future__ import annotations

import posixpath
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from guestctl.errors import GuestctlError
from guestctl.offload.place import Place, within
from guestctl.remembered import remembered
from guestctl.toolchain import GuestFiles, Mismatch, Pairing, Toolchain, identity, pair
from guestctl.toolchain.pair import identify
from guestctl.view import Mount, Tree

__all__ = ["Compilers"]

_REMEMBER_MISMATCH = 5.0  # seconds: what differs may be installed at any time
_Stamp = tuple[int, ...]


@dataclass(frozen=True)
class _Known:
    pairing: Pairing | Mismatch
    stamps: tuple[tuple[bytes, _Stamp], ...]
    until: float


class Compilers:
    """Remembers what it has found for as long as nothing that it rests on has changed."""

    def __init__(
        self, trees: Mapping[str, Tree], toolchains: Sequence[Toolchain], cache_dir: Path
    ) -> None:
        self._trees = trees
        self._toolchains = toolchains
        self._cache_dir = cache_dir
        self._programs = frozenset(
            program.identity for toolchain in toolchains for program in toolchain.programs
        )
        self._known: dict[tuple[Place, bytes, tuple[bytes, ...]], _Known] = {}
        self._identities: dict[_Stamp, str] = {}
        self._lock = threading.Lock()

    def find(self, place: Place, program: bytes, path: Sequence[bytes]) -> Pairing | str:
        """The pairing for a program at a place, or why there is none. `path` are the folders of
        the caller's PATH but for the stubs' own: there compilers look for as and ld."""
        files = GuestFiles(self._trees, place.mounts)
        key = (place, program, tuple(path))
        with self._lock:
            known = self._known.get(key)
            if known is None or not _holds(known, files):
                try:
                    identified = partial(self._identify, place)
                    found = pair(files, program, path, self._toolchains, identified)
                except (GuestctlError, OSError) as error:
                    return f"its compiler cannot be examined: {error}"
                known = self._known[key] = self._remember(found, files, place)
        return known.pairing if isinstance(known.pairing, Pairing) else str(known.pairing)

    def _identify(self, place: Place, files: GuestFiles, path: bytes) -> str:
        stamp = files.stamp(path)
        if stamp not in self._identities:
            find = partial(identify, files, path)
            mount = _mount_of(place, path)
            self._identities[stamp] = (
                find() if self._may_change(mount) else self._kept(mount, path, stamp, find)
            )
        return self._identities[stamp]

    def _kept(self, mount: Mount, path: bytes, stamp: _Stamp, find: Callable[[], str]) -> str:
        """What an earlier lease found out, or each one's first call would hash 50 MB.

        A guest chooses what it runs and where it mounts a tree. So that it cannot make the cache
        grow, only toolchains' programs are kept, by their places in the tree.
        """
        inside = posixpath.join(b"/", mount.subpath, path[len(mount.at) :].lstrip(b"/"))
        return str(
            remembered(
                self._cache_dir,
                f"identity of {inside!r} of {mount.tree}",
                [identity.VERSION, *stamp],
                find,
                keep=self._programs.__contains__,
            )
        )

    def _may_change(self, mount: Mount) -> bool:
        """Whether what is mounted is a tree that the guest can write."""
        return mount.tree is not None and not self._trees[mount.tree].fixed

    def _remember(self, found: Pairing | Mismatch, files: GuestFiles, place: Place) -> _Known:
        if isinstance(found, Mismatch):
            return _Known(found, (), time.monotonic() + _REMEMBER_MISMATCH)
        seen = [path for path in found.seen if self._may_change(_mount_of(place, path))]
        return _Known(found, tuple((path, files.stamp(path)) for path in seen), float("inf"))


def _mount_of(place: Place, path: bytes) -> Mount:
    """The mount that has a path, which is absolute and without links."""
    return max((m for m in place.mounts if within(path, m.at)), key=lambda m: len(m.at))


def _holds(known: _Known, files: GuestFiles) -> bool:
    if time.monotonic() > known.until:
        return False
    return all(files.stamp(path) == stamp for path, stamp in known.stamps)
