"""What a guest has mounted of the host's: its share at /work, and a sysroot made of its base."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Sequence

from guestctl.errors import (
    GuestctlError,
    GuestLost,
    RequestFailed,
    ShareError,
    TreeError,
    one_line,
)
from guestctl.rundir import GuestDir, read_json, write_json
from guestctl.share import Share
from guestctl.tree.dirt import cleaned, soiled
from guestctl.tree.state import is_partial
from guestctl.wire import Op, Tag

__all__ = ["MOUNT_OPTIONS", "SYSROOT", "WORK", "Mounting"]

# docs/virtfs-format.md says why these.
MOUNT_OPTIONS = b"version=9p2000.L,msize=131072,access=client,cache=mmap"
# Nobody changes it while it is mounted, so the guest may keep all that it has seen of it.
_BASE_OPTIONS = b"version=9p2000.L,msize=131072,access=client,cache=loose"

WORK = "/work"
SYSROOT = "/sysroot"
_BASE = "/base"

_Mount = tuple[str, tuple[tuple[Tag, bytes], ...]]


def _mounts(folders: Sequence[str] | None) -> list[_Mount]:
    """The targets in order, each with what else the agent is told."""
    found: list[_Mount] = [(WORK, ((Tag.TAG, b"work"), (Tag.OPTIONS, MOUNT_OPTIONS)))]
    if folders is None:
        return found
    found.append((_BASE, ((Tag.TAG, b"base"), (Tag.OPTIONS, _BASE_OPTIONS))))
    found.append((SYSROOT, ((Tag.TAG, _BASE.encode()), (Tag.KIND, b"layer"))))
    for name in folders:
        source = f"{WORK}/{name}".encode()
        found.append((f"{SYSROOT}/{name}", ((Tag.TAG, source), (Tag.KIND, b"folder"))))
    return found


class Mounting:
    """`request` asks the agent; the run directory says to the next holder what is mounted, and the
    share itself, to whoever finds it, that a guest has it or died with it.
    """

    def __init__(
        self, folder: GuestDir, work: Share, base: Share, request: Callable[..., None]
    ) -> None:
        self._folder = folder
        self._shares = {WORK: work, _BASE: base}
        self._request = request
        self._left = False
        self._in_use = False  # a command has kept it from being unmounted the last time

    @contextlib.contextmanager
    def mounted(self, sysroot: Sequence[str] | None = None) -> Iterator[None]:
        """Mounted for as long as this lasts, and longer after `leave`; with `sysroot`, the base
        as well, for a sysroot that has these folders of the share.

        Raises ShareError for a share that was staged in part only, and for a board, which has none.
        """
        if self._folder.spec().get("member"):
            raise ShareError(
                f"{self._folder.name} is a board, which has no share of this host",
                hint="run the command on what the board has itself, or lease a guest",
            )
        targets = [target for target, _ in _mounts(sysroot)]
        for share in (self._shares[target] for target in targets if target in self._shares):
            if is_partial(share.path):
                raise ShareError(
                    f"{share.path} was staged in part only", hint="stage the same archive again"
                )
        self.mount(sysroot)
        try:
            try:
                yield
            except BaseException:
                # What went wrong first is what the caller must hear of.
                with contextlib.suppress(GuestLost, ShareError):
                    self._unmount_unless_left()
                raise
            else:
                self._unmount_unless_left()
        except GuestLost as error:
            path = self._shares[WORK].path
            error.hint = one_line(f"{error.hint}; the share {path} is marked as dirty")
            raise
        finally:
            self.unlock()

    def leave(self) -> None:
        """What is mounted stays so for an orphan that uses it."""
        self._left = True

    def _unmount_unless_left(self) -> None:
        if not self._left:
            self.unmount()

    def mount(self, folders: Sequence[str] | None = None) -> None:
        """The share is the guest's from here on, and with `folders`, which the sysroot has of the
        share, its base too; raises ShareError, RequestFailed, GuestLost.
        """
        mounts = _mounts(folders)
        targets = [target for target, _ in mounts]
        if self._in_use:
            self.undo_leftovers()
            self._in_use = False
        try:
            self._lock(targets)
            # One that was dirty before stays so: a later guest does not know what is missing.
            write_json(self._folder.mounts, {"targets": targets, "clean": self._mark()})
            for target, records in mounts:
                self._request(Op.MOUNT, (Tag.TARGET, target.encode()), *records)
        except BaseException:
            with contextlib.suppress(GuestctlError):
                self.undo_leftovers()
            self.unlock()
            raise

    def _lock(self, targets: Sequence[str]) -> None:
        for target in targets:
            if target in self._shares:
                self._shares[target].lock()

    def unlock(self) -> None:
        """The host has its folders again."""
        for share in self._shares.values():
            share.unlock()

    def unmount(self) -> None:
        """Raises ShareError while commands use it; the caller unlocks the shares."""
        for target in reversed(self._targets()):
            self._unmount(target)
        self._forget()

    def _mark(self) -> bool:
        """Says in the share whose it is; whether it was clean before."""
        share = self._shares[WORK]
        user = f"guest {self._folder.name} of pool {self._folder.path.parent.name}"
        try:
            return soiled(share.path, share.security_model, user)
        except (OSError, TreeError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            raise ShareError(
                f"{share.path} cannot be marked as in use: {reason}",
                hint="a share needs room for a small file of guestctl's own",
            ) from None

    def _forget(self) -> None:
        """The guest has let go of all, and what it wrote is there."""
        share = self._shares[WORK]
        if read_json(self._folder.mounts).get("clean"):
            held = share.mounted
            # Where the host is at it already, or it is full, it stays dirty: that is the safe side.
            with contextlib.suppress(OSError, ShareError, TreeError):
                if not held:
                    share.lock()
                cleaned(share.path, share.security_model)
            if not held:
                share.unlock()
        self._folder.mounts.unlink(missing_ok=True)

    def _targets(self) -> list[str]:
        return [str(target) for target in read_json(self._folder.mounts).get("targets", [WORK])]

    def _unmount(self, target: str) -> None:
        try:
            self._request(Op.UNMOUNT, (Tag.TARGET, target.encode()))
        except RequestFailed as error:
            if error.errno == errno.EBUSY:
                self._in_use = True
                raise ShareError(
                    f"{target} is still in use in guest {self._folder.name}",
                    hint="wait for its commands, or cancel them, before leaving mounted()",
                ) from None
            raise

    def undo_leftovers(self) -> None:
        """Undoes mounts that outlived a `mounted`: of a lease holder that died, perhaps before
        it had made them all, and those that a command still used. Raises ShareError if one does.
        """
        if not self._folder.mounts.exists():
            return
        for target in reversed(self._targets()):
            try:
                self._unmount(target)
            except RequestFailed as error:
                if error.errno not in (errno.EINVAL, errno.ENOENT):
                    raise
        self._forget()

    def keep_leftovers(self) -> None:
        """What a dead holder has mounted for its orphans stays mounted, and the guest's."""
        if self._folder.mounts.exists():
            self._lock(self._targets())
