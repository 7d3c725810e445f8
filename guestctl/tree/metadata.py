"""The metadata of entries on disk, of either model: what QEMU reads, and what is kept aside."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TypeVar

from guestctl.entry import Entry
from guestctl.errors import ArchiveError, TreeError
from guestctl.tree.state import NEW_FILE, OPEN_DIR, OPEN_FILE, open_dir, read_small
from guestctl.tree.walk import shown
from guestctl.vmeta import (
    ACL_PREFIX,
    ASIDE_PREFIX,
    META_DIR,
    META_MAX,
    ROOT_FILE,
    SEAL,
    VIRTFS_PREFIX,
    encode_rdev,
    has_rdev,
)

__all__ = [
    "Pairs",
    "encoded",
    "folder_aside",
    "host_xattrs",
    "kept_aside",
    "metadata_text",
    "set_xattrs",
    "small_text",
    "split_xattrs",
    "unseal",
    "write_text",
]

Pairs = list[tuple[bytes, bytes]]
Warn = Callable[[str], None]
_Form = TypeVar("_Form", bytes, tuple[tuple[bytes, bytes], ...])
_LOST = (errno.ENOTSUP, errno.ENOSPC, errno.E2BIG, errno.EPERM, errno.ERANGE, errno.EDQUOT)


# Read


def small_text(name: bytes, dir_fd: int, at: bytes) -> bytes | None:
    """The text of a metadata file, or None; TreeError if it is not what QEMU would read."""
    try:
        return read_small(name, dir_fd, META_MAX)
    except ValueError as error:
        raise TreeError(f"{shown(at)}: its metadata is {error}") from None
    except OSError as error:
        raise TreeError(f"{shown(at)}: its metadata: {error.strerror}") from error


def metadata_text(name: bytes, meta: int, at: bytes) -> bytes | None:
    """The same, by fewer calls where all is well; `meta` is the metadata folder or -1."""
    if meta < 0:
        return None
    try:
        fd = os.open(name, OPEN_FILE, dir_fd=meta)
    except FileNotFoundError:
        return None
    except OSError:
        return small_text(name, meta, at)
    try:
        text = os.read(fd, META_MAX + 1)
    except OSError:
        text = b""
    finally:
        os.close(fd)
    if not text or len(text) > META_MAX:
        return small_text(name, meta, at)  # it says what is wrong, if anything is
    return text


def host_xattrs(fd: int, entry: Entry, *, file_model: bool) -> dict[bytes, bytes]:
    """Sorts the host's attributes of an entry; returns those that are QEMU's."""
    own: dict[bytes, bytes] = {}
    for raw in os.listxattr(fd):
        name = os.fsencode(raw)
        if not name.startswith(b"user."):
            continue
        if not name.startswith(VIRTFS_PREFIX):
            entry.xattrs[name] = os.getxattr(fd, name)
        elif not file_model:
            if name.startswith(ASIDE_PREFIX):
                entry.xattrs[name[len(ASIDE_PREFIX) :]] = os.getxattr(fd, name)
            elif name.startswith(ACL_PREFIX):
                entry.xattrs[name[len(VIRTFS_PREFIX) :]] = os.getxattr(fd, name)
            else:
                own[name] = os.getxattr(fd, name)
    return own


def kept_aside(meta: int, name: bytes, entry: Entry) -> bytes | None:
    """Adds what stage kept on the metadata file; returns the seal."""
    fd = os.open(name, OPEN_FILE, dir_fd=meta)
    try:
        for raw in os.listxattr(fd):
            key = os.fsencode(raw)
            if key.startswith(ASIDE_PREFIX):
                entry.xattrs[key[len(ASIDE_PREFIX) :]] = os.getxattr(fd, key)
            elif key == SEAL:
                return os.getxattr(fd, key)
    except OSError:
        pass
    finally:
        os.close(fd)
    return None


def folder_aside(fd: int, root: int, path: bytes, entry: Entry) -> None:
    """The same of the folder open at `fd`, whose path from the root is `path`."""
    if not path:
        kept_aside(root, ROOT_FILE, entry)
        return
    above = os.open(b"..", OPEN_DIR, dir_fd=fd)
    try:
        meta = open_dir(META_DIR, above)
        try:
            kept_aside(meta, path.rpartition(b"/")[2], entry)
        finally:
            os.close(meta)
    except FileNotFoundError:
        pass
    finally:
        os.close(above)


def unseal(entry: Entry, seal: bytes | None, warn: Warn) -> None:
    """Drops a capability from a file that was changed since."""
    if b"security.capability" in entry.xattrs and seal != b"%d %d" % (entry.mtime, entry.size):
        del entry.xattrs[b"security.capability"]
        warn(f"{entry.shown}: it was changed, and so has lost its capability")


# Write


def encoded(
    encode: Callable[[int, int, int, int | None], _Form], entry: Entry, label: str
) -> _Form:
    """The metadata of `entry` in a model's form; ArchiveError where that cannot hold it."""
    try:
        rdev = encode_rdev(*entry.rdev) if has_rdev(entry.mode) else None
        return encode(entry.uid, entry.gid, entry.mode, rdev)
    except ValueError as error:
        raise ArchiveError(f"{label}: {entry.shown}: {error}") from None


def write_text(
    meta: int, name: bytes, text: bytes, aside: Pairs, entry: Entry, warn: Warn, *, exact: bool
) -> None:
    """Writes a metadata file anew; `exact`: the umask takes nothing from its mode."""
    try:
        fd = os.open(name, NEW_FILE, 0o600, dir_fd=meta)
    except FileExistsError:
        try:
            os.unlink(name, dir_fd=meta)
        except IsADirectoryError:
            raise TreeError(f"{entry.shown}: its metadata is a directory") from None
        fd = os.open(name, NEW_FILE, 0o600, dir_fd=meta)
    try:
        if not exact:
            os.fchmod(fd, 0o600)
        os.write(fd, text)
        if aside:
            set_xattrs(fd, aside, entry, warn)
    finally:
        os.close(fd)


def set_xattrs(fd: int, pairs: Pairs, entry: Entry, warn: Warn) -> None:
    """Sets attributes; what the file system cannot hold is warned of, unless it is QEMU's."""
    for name, value in pairs:
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if name.startswith(VIRTFS_PREFIX) and not name.startswith(ASIDE_PREFIX):
                raise
            if error.errno not in _LOST:
                raise
            lost = os.fsdecode(name.removeprefix(ASIDE_PREFIX))
            warn(f"{entry.shown}: {lost} is lost: {error.strerror}")


def split_xattrs(entry: Entry, warn: Warn, *, file_model: bool) -> tuple[Pairs, Pairs]:
    """Sorts extended attributes into those that the guest sees and those kept aside."""
    direct: Pairs = []
    aside: Pairs = []
    if not entry.xattrs:
        return direct, aside
    holds = stat.S_IFMT(entry.mode) in (stat.S_IFREG, stat.S_IFDIR)
    for name, value in sorted(entry.xattrs.items()):
        if name.startswith(VIRTFS_PREFIX):
            warn(f"{entry.shown}: {os.fsdecode(name)} is reserved, and left out")
        elif b"\0" in name or name in (b"", b"user."):
            warn(f"{entry.shown}: an attribute of an impossible name is left out")
        elif name.startswith(b"user.") and holds:
            direct.append((name, value))
        elif name.startswith(b"system.posix_acl_") and not file_model:
            direct.append((VIRTFS_PREFIX + name, value))
        elif len(name) + len(ASIDE_PREFIX) > 255:
            warn(f"{entry.shown}: an attribute of an impossible name is left out")
        else:
            aside.append((ASIDE_PREFIX + name, value))
    if aside and b"security.capability" in entry.xattrs:
        aside.append((SEAL, b"%d %d" % (entry.mtime, entry.size)))
    return direct, aside
