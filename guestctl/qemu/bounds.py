"""What one QEMU may take of the host: rlimits always, a control group where the user has one.

A guest has one processor and a fixed memory; these bounds are for a QEMU that a guest has broken,
or that leaks.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Group", "delegated", "group_for", "limit_resources"]

_PREFIX = "guestctl-"
# MiB beside the guest's memory: translated code takes 1,024, and each thread of the 9p server
# reserves some; 2,200 in all is what an emulated guest has been seen to map.
_ADDRESSES = 6144
# MiB beside the guest's memory that are really used; the page cache of its files counts as well,
# and is given back first.
_MEMORY = 1024
_TASKS = 256
_FILES = 4096
# Two processors: the guest's own, and QEMU's threads for disks and shares.
_PROCESSOR = "200000 100000"
_REMOVE_TIMEOUT = 1.0


def limit_resources(memory: int) -> None:
    """Bounds this process and what it starts, for a guest of `memory` MiB."""
    # A guest's memory must not end up in a core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # However few the caller asked for itself, a guest may hold many files of its share open.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = memory + _ADDRESSES << 20
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))


def group_for(pids: Sequence[int], name: str, memory: int) -> Group | None:
    """A control group with these processes in it, None where this user cannot have one."""
    parent = delegated()
    if parent is None:
        return None
    try:
        made = Group.of(parent, name, memory)
    except OSError:
        return None
    try:
        for pid in pids:
            made.take(pid)
    except OSError:
        made.remove()
        return None
    return made


def delegated(
    own: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/proc/self/mounts")
) -> Path | None:
    """The nearest folder above us in which this user may make control groups (version 2) that
    bound memory; None where there is none, as with version 1.

    See Documentation/admin-guide/cgroup-v2.rst, "Delegation", in Linux.
    """
    with suppress(OSError, ValueError, StopIteration):
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
        root = Path(next(line.split()[1] for line in lines if line.split()[2] == "cgroup2"))
        (line,) = [line for line in own.read_text().splitlines() if line.startswith("0::")]
        here = root / line[3:].lstrip("/")
        for folder in (here, *here.parents):
            # Processes may be moved only where we own the group above both places.
            if _ours(folder) and "memory" in _words(folder / "cgroup.subtree_control"):
                return folder
            if folder == root:
                break
    return None


def _ours(folder: Path) -> bool:
    return all(os.access(path, os.W_OK) for path in (folder, folder / "cgroup.procs"))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


@dataclass(frozen=True)
class Group:
    """The control group of one QEMU."""

    folder: Path

    @classmethod
    def of(cls, parent: Path, name: str, memory: int) -> Group:
        """Makes a group for a guest of `memory` MiB; raises OSError.

        Removes those that supervisors which were killed have left, too.
        """
        for old in parent.glob(f"{_PREFIX}*"):
            with suppress(OSError):
                old.rmdir()  # refused while anything runs in it
        made = cls(parent / f"{_PREFIX}{name}")
        made.folder.mkdir(mode=0o755)
        bounds = {
            "memory.max": str(memory + _MEMORY << 20),
            "pids.max": str(_TASKS),
            "cpu.max": _PROCESSOR,
        }
        for what, bound in bounds.items():
            # Which controllers a user gets is the administrator's choice.
            with suppress(OSError), open(made.folder / what, "r+", encoding="ascii") as file:
                file.write(bound)
        return made

    def take(self, pid: int) -> None:
        """Moves a process in; what it starts from then on is in it too. Raises OSError."""
        (self.folder / "cgroup.procs").write_text(str(pid), encoding="ascii")

    def remove(self) -> None:
        """Removes the group, once what ran in it has ended."""
        deadline = time.monotonic() + _REMOVE_TIMEOUT
        while time.monotonic() < deadline:
            try:
                self.folder.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.02)
