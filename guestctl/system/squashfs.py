"""squashfs by sqfstar: data compressed, metadata not, so that it can be mended."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from guestctl.entry import Entry
from guestctl.errors import ArchiveError, HostLacks
from guestctl.imaging.squashfs import own_root
from guestctl.system.rootfs import RootFs
from guestctl.translate import collect

__all__ = ["write_squashfs"]

_DEADLINE = 1800
_MOST = 0xFFFFFFFF


def write_squashfs(rootfs: RootFs, out: Path, *, epoch: int) -> None:
    """Writes `out`. Times are whole seconds from 1970 to 2106.

    The root folder is root's, with the mode that it has in the archive and `epoch` as its time.
    """
    ids: set[int] = {0}
    mode = 0o755
    for entry, _content in rootfs.entries():
        ids |= {entry.uid, entry.gid}
        _hold_time(rootfs, entry)
        if not entry.path:
            mode = entry.mode & 0o7777
            if (entry.uid, entry.gid) != (0, 0):
                rootfs.warn(".: the root folder becomes root's")
    command = ["sqfstar", "-comp", "zstd", "-noI", "-noX", "-mkfs-time", str(epoch)]
    command += ["-root-mode", f"{mode:o}", "-no-progress", "-quiet", str(out)]
    with tempfile.TemporaryFile(dir=out.parent) as tar, tempfile.TemporaryFile() as said:
        collect(rootfs.tree, tar)
        tar.seek(0)
        try:
            done = subprocess.run(
                command, stdin=tar, stdout=said, stderr=said, timeout=_DEADLINE, check=False
            )
        except FileNotFoundError:
            raise HostLacks(
                "sqfstar is not installed", hint="apt-get install squashfs-tools"
            ) from None
        except subprocess.TimeoutExpired:
            raise ArchiveError(f"sqfstar took more than {_DEADLINE} s") from None
        said.seek(0)
        lines = said.read().decode(errors="backslashreplace").strip().splitlines()
    if done.returncode:
        raise ArchiveError(f"{out.name}: sqfstar: {(lines or ['no word of why'])[-1]}")
    with open(out, "r+b") as file:
        own_root(file, ids, epoch)


def _hold_time(rootfs: RootFs, entry: Entry) -> None:
    """sqfstar gives up at a time that it cannot write: the staged file gets one that it can."""
    seconds = rootfs.clamped(entry, 0, _MOST)
    if seconds != entry.mtime // 10**9:
        path = os.path.join(os.fsencode(rootfs.tree), entry.path)
        os.utime(path, (seconds, seconds), follow_symlinks=False)
