"""The share of one guest at /work: mounted, unmounted, or left mounted by a holder that died."""

from __future__ import annotations

import errno
from collections.abc import Callable

from guestctl.errors import RequestFailed, ShareError
from guestctl.rundir import GuestDir, write_json
from guestctl.share import Share
from guestctl.wire import Op, Tag

__all__ = ["MOUNT_OPTIONS", "WORK", "Mounting"]

# docs/virtfs-format.md says why these.
MOUNT_OPTIONS = b"version=9p2000.L,msize=131072,access=client,cache=mmap"

WORK = "/work"


class Mounting:
    """`request` asks the agent; the run directory says to the next holder what is mounted."""

    def __init__(self, folder: GuestDir, share: Share, request: Callable[..., None]) -> None:
        self._folder = folder
        self._share = share
        self._request = request

    def mount(self) -> None:
        """The share is the guest's from here on; raises ShareError, RequestFailed, GuestLost."""
        self._share.lock()
        try:
            write_json(self._folder.mounts, {"targets": [WORK]})
            self._request(
                Op.MOUNT,
                (Tag.TAG, b"work"),
                (Tag.TARGET, WORK.encode()),
                (Tag.OPTIONS, MOUNT_OPTIONS),
            )
        except BaseException:
            self._share.unlock()
            raise

    def unmount(self) -> None:
        """Raises ShareError while commands use it; the caller unlocks the share."""
        try:
            self._request(Op.UNMOUNT, (Tag.TARGET, WORK.encode()))
        except RequestFailed as error:
            if error.errno == errno.EBUSY:
                raise ShareError(
                    f"{WORK} is still in use in guest {self._folder.name}",
                    hint="wait for its commands, or cancel them, before leaving mounted()",
                ) from None
            raise
        self._folder.mounts.unlink(missing_ok=True)

    def undo_leftovers(self) -> None:
        """Undoes the mount of a lease holder that died."""
        if not self._folder.mounts.exists():
            return
        try:
            self.unmount()
        except RequestFailed as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
            self._folder.mounts.unlink(missing_ok=True)

    def keep_leftovers(self) -> None:
        """What a dead holder has mounted for its orphans stays mounted, and the guest's."""
        if self._folder.mounts.exists():
            self._share.lock()
