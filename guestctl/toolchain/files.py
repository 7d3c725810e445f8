"""The files that a guest's process sees, read from the host without its help.

A path is walked folder by folder with descriptors, and a link's text is interpreted here: nothing
of the guest's leads the host out of its trees.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

from guestctl.errors import TreeError
from guestctl.tree.state import OPEN_FILE, read_small
from guestctl.view import Mount, Tree
from guestctl.vmeta import MAPPED_FILE, MAPPED_XATTR, META_DIR, decode_text, decode_xattrs

__all__ = ["GuestFiles"]

_MOST_LINKS = 40
_MOST_TEXT = 4096
_MOST_FILE = 256 << 20  # no part of a compiler is larger
_XATTR_MODE = "user.virtfs.mode"
_SEARCH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class GuestFiles:
    """A guest's file system as mounts of trees, by absolute paths of one of its processes.

    What the host cannot see (a mount without a tree) is as if it were empty. All methods raise
    OSError as the guest's own calls would.
    """

    def __init__(self, trees: Mapping[str, Tree], mounts: Sequence[Mount]) -> None:
        self._trees = dict(trees)
        self._mounts = {os.path.normpath(mount.at): mount for mount in mounts}

    def realpath(self, path: bytes) -> bytes:
        """The path without links, `.` and `..`."""
        done: list[bytes] = []
        todo = [part for part in reversed(path.split(b"/")) if part]
        links = 0
        while todo:
            name = todo.pop()
            if name == b".":
                continue
            if name == b"..":
                done = done[:-1]
                continue
            target = self._readlink(b"/" + b"/".join([*done, name]))
            if target is None:
                done.append(name)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, "too many links", os.fsdecode(path))
            if target.startswith(b"/"):
                done = []
            todo += [part for part in reversed(target.split(b"/")) if part]
        return b"/" + b"/".join(done)

    def open(self, path: bytes) -> BinaryIO:
        """Opens a regular file, through links; its size is bounded."""
        folder, name, _ = self._parent(self.realpath(path))
        try:
            descriptor = os.open(name, OPEN_FILE, dir_fd=folder)
        finally:
            os.close(folder)
        file = os.fdopen(descriptor, "rb")
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _MOST_FILE:
            file.close()
            raise OSError(errno.EINVAL, "not a file to be read here", os.fsdecode(path))
        return file

    def stamp(self, path: bytes) -> tuple[int, ...]:
        """Numbers that change when another file is at `path`, or its content is another one.

        Empty for what is not there.
        """
        try:
            folder, name, _ = self._parent(self.realpath(path))
        except OSError:
            return ()
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
        except OSError:
            return ()
        finally:
            os.close(folder)

    def visible(self, path: bytes) -> bool:
        """Whether the host sees what is at `path`, be it nothing."""
        at = max((m for m in self._mounts if _covers(m, path)), key=len, default=None)
        return at is not None and self._mounts[at].tree is not None

    def holds(self, folder: bytes, names: Iterable[bytes]) -> bool:
        """Whether a folder has one of the names, be it a link that leads nowhere. What the host
        cannot see is taken to have it.
        """
        real = self.realpath(folder)
        if not self.visible(real) or any(_covers(real, at) and at != real for at in self._mounts):
            return True
        for name in names:
            inner, last, _ = self._parent(posixpath.join(real, name))
            try:
                os.stat(last, dir_fd=inner, follow_symlinks=False)
                return True
            except FileNotFoundError:
                continue
            finally:
                os.close(inner)
        return False

    def _parent(self, path: bytes) -> tuple[int, bytes, str | None]:
        """The folder, open, in which the host has `path`, its name there, and the tree's model."""
        at = max((m for m in self._mounts if _covers(m, path)), key=len, default=None)
        mount = self._mounts[at] if at is not None else None
        if at is None or mount is None or mount.tree is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", os.fsdecode(path))
        tree = self._trees[mount.tree]
        below = [part for part in (mount.subpath + b"/" + path[len(at) :]).split(b"/") if part]
        folder = os.open(tree.path, _SEARCH & ~os.O_NOFOLLOW)
        try:
            for part in below[:-1]:
                inner = os.open(part, _SEARCH, dir_fd=folder)
                os.close(folder)
                folder = inner
        except BaseException:
            os.close(folder)
            raise
        return folder, below[-1] if below else b".", tree.model

    def _readlink(self, path: bytes) -> bytes | None:
        """What the link at `path` says, or None if there is another file; links lead not to it."""
        if any(_covers(path, mount) for mount in self._mounts):
            return None  # a mount point, or a folder that holds one
        folder, name, model = self._parent(path)
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                return os.fsencode(os.readlink(name, dir_fd=folder))
            if stat.S_ISREG(info.st_mode) and _is_link(folder, name, model):
                return read_small(name, folder, _MOST_TEXT)
            return None
        except (ValueError, TreeError) as error:
            raise OSError(errno.EINVAL, str(error), os.fsdecode(path)) from None
        finally:
            os.close(folder)


def _covers(mount: bytes, path: bytes) -> bool:
    return mount in (b"/", path) or path.startswith(mount + b"/")


def _is_link(folder: int, name: bytes, model: str | None) -> bool:
    """Whether a regular file of the host is a link for the guest."""
    if model == MAPPED_FILE:
        try:
            meta = os.open(META_DIR, _SEARCH, dir_fd=folder)
        except FileNotFoundError:
            return False
        try:
            text = read_small(name, meta, _MOST_TEXT)
        finally:
            os.close(meta)
        mode = decode_text(text).mode if text else None
    elif model == MAPPED_XATTR:
        mode = _xattr_mode(folder, name)
    else:
        mode = None
    return mode is not None and stat.S_ISLNK(mode)


def _xattr_mode(folder: int, name: bytes) -> int | None:
    descriptor = os.open(name, OPEN_FILE, dir_fd=folder)
    try:
        value = os.getxattr(descriptor, _XATTR_MODE)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
    finally:
        os.close(descriptor)
    return decode_xattrs({_XATTR_MODE.encode(): value}).mode
