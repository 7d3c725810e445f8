"""A host directory that is exported to a guest, and whether the guest has it mounted."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from guestctl.errors import ShareError
from guestctl.places import private_directory
from guestctl.rundir import flocked
from guestctl.tree.dirt import dirt_of

__all__ = ["Share", "check_share", "remove_lock", "share_lock"]


def check_share(path: Path) -> Path:
    """The real path of a folder that may become a share; raises ShareError saying what is wrong."""
    if not path.exists():
        raise ShareError(f"the share {path} does not exist", hint=f"mkdir -p {path}")
    if not path.is_dir():
        raise ShareError(
            f"the share {path} is not a directory",
            hint="--share takes a folder, which may be empty",
        )
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ShareError(
            f"the share {path} is not writable by this user",
            hint="a share needs no root: take a folder of your own",
        )
    return path.resolve()


def share_lock(share: Path, runtime: Path) -> Path:
    """The lock of a folder, whatever its name: one guest at a time has it as a writable share."""
    facts = share.stat()
    return private_directory(runtime / "locks") / f"{facts.st_dev}-{facts.st_ino}"


class Share:
    """One export of one guest. It stands for its path wherever the host may touch the files.

    `os.fspath(share)` raises ShareError while the guest has it mounted: the host would read half of
    what the guest writes, and the guest would not see what the host does. `security_model` is the
    one that QEMU exports it with, and that whatever is staged here must follow. `writable`: by the
    guest; `confined`: QEMU sees it through a mount of its own.
    """

    def __init__(
        self,
        path: Path,
        guest: str,
        security_model: str,
        *,
        writable: bool = True,
        confined: bool = False,
    ) -> None:
        self.path = path
        self.security_model = security_model
        self.guest = guest
        self.writable = writable
        self.confined = confined
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"Share({str(self.path)!r}, mounted={self.mounted})"

    def __fspath__(self) -> str:
        if self.mounted:
            raise ShareError(
                f"{self.path} is mounted in guest {self.guest}",
                hint="leave `with guest.mounted()` before the host touches its files",
            )
        return str(self.path)

    @property
    def mounted(self) -> bool:
        return self._lock is not None

    @property
    def dirt(self) -> str:
        """What a guest that died has left undone in it, see guestctl.tree.dirt; empty if nothing.

        Raises TreeError where it is gone.
        """
        return "" if self.mounted else dirt_of(self.path)

    def lock(self) -> None:
        """Marks it as the guest's; other processes see that by the lock on the folder."""
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ShareError(f"{self.path} is in use by another process") from None
        self._lock = handle

    def unlock(self) -> None:
        """Gives it back to the host."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_lock(path: Path) -> None:
    """Removes a lock's file, unless somebody holds it."""
    try:
        handle = flocked(path, create=False)
    except FileNotFoundError:
        return
    if handle is not None:
        path.unlink()
        os.close(handle)
