"""The share of one guest at /work: mounted, unmounted, or left mounted by a holder that died."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from guestctl.errors import GuestLost, RequestFailed, ShareError
from guestctl.rundir import GuestDir, write_json
from guestctl.share import Share
from guestctl.tree.state import is_partial
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
        self._left = False

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Mounted for as long as this lasts, and longer after `leave`.

        Raises ShareError for a share that was staged in part only, and for a board, which has none.
        """
        if self._folder.spec().get("member"):
            raise ShareError(
                f"{self._folder.name} is a board, which has no share of this host",
                hint="run the command on what the board has itself, or lease a guest",
            )
        if is_partial(self._share.path):
            raise ShareError(
                f"{self._share.path} was staged in part only", hint="stage the same archive again"
            )
        self.mount()
        try:
            yield
        except BaseException:
            # What went wrong first is what the caller must hear of.
            with suppress(GuestLost):
                self._unmount_unless_left()
            raise
        else:
            self._unmount_unless_left()
        finally:
            self._share.unlock()

    def leave(self) -> None:
        """What is mounted stays so for an orphan that uses it."""
        self._left = True

    def _unmount_unless_left(self) -> None:
        if not self._left:
            self.unmount()

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
