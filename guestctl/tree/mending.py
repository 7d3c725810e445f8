"""What repair does to an entry: metadata written anew, links shared, host objects converted."""

from __future__ import annotations

import os
import stat

from guestctl.tree.state import NEW_FILE, open_dir, remove_contents
from guestctl.vmeta import (
    META_DIR,
    VIRTFS_PREFIX,
    encode_rdev,
    encode_text,
    encode_xattrs,
    has_rdev,
)

__all__ = [
    "convert",
    "discard",
    "drop_xattrs",
    "empty",
    "grant",
    "mapped_xattrs",
    "meta_dir",
    "remove",
    "rewrite",
    "share",
]

_MAPPED = frozenset(VIRTFS_PREFIX + key for key in (b"uid", b"gid", b"mode", b"rdev"))


def meta_dir(fd: int) -> int:
    """Opens the metadata folder of the folder `fd`, made if missing."""
    try:
        os.mkdir(META_DIR, 0o700, dir_fd=fd)
    except FileExistsError:
        pass
    return open_dir(META_DIR, fd)


def rewrite(fd: int, name: bytes, text: bytes, *, is_root: bool, anew: bool = False) -> None:
    """Rewrites metadata in place, since names of one file share it; creates it if missing.

    What another file's name shares by mistake stays that one's: this one gets metadata of its own,
    and so it does in any case with `anew`.
    """
    meta = os.dup(fd) if is_root else meta_dir(fd)
    try:
        alone = is_root or not _of_several_names(fd, name)
        if anew or (alone and _of_several_names(meta, name)):
            os.unlink(name, dir_fd=meta)
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            new = os.open(name, flags | os.O_TRUNC, dir_fd=meta)
        except FileNotFoundError:
            new = os.open(name, NEW_FILE, 0o600, dir_fd=meta)
        try:
            os.fchmod(new, 0o600)
            os.write(new, text)
        finally:
            os.close(new)
    finally:
        os.close(meta)


def _of_several_names(dir_fd: int, name: bytes) -> bool:
    """Whether `name` is a regular file with other names too."""
    try:
        info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(info.st_mode) and info.st_nlink > 1


def convert(name: bytes, fd: int, info: os.stat_result, *, file_model: bool) -> None:
    """Puts QEMU's form in the place of a link or special file of the host."""
    target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(info.st_mode) else b""
    mode, rdev = info.st_mode, None
    if has_rdev(mode):
        rdev = encode_rdev(os.major(info.st_rdev), os.minor(info.st_rdev))
    os.unlink(name, dir_fd=fd)
    new = os.open(name, NEW_FILE, 0o600, dir_fd=fd)
    try:
        os.fchmod(new, 0o600)
        os.write(new, target)
        if not file_model:
            for key, value in encode_xattrs(0, 0, mode, rdev):
                os.setxattr(new, key, value)
        os.utime(new, ns=(info.st_mtime_ns, info.st_mtime_ns))
    finally:
        os.close(new)
    if file_model:
        rewrite(fd, name, encode_text(0, 0, mode, rdev), is_root=False)


def share(there: int, old: bytes, fd: int, name: bytes, meta: int) -> None:
    """Makes the metadata of `name` that of `old` in the folder `there`; both name one file.

    `meta` is the metadata folder of `fd` if it has one, else -1.
    """
    source = open_dir(META_DIR, there)
    try:
        if meta >= 0:
            remove(name, meta)
        target = meta_dir(fd)
        try:
            os.link(old, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(target)
    finally:
        os.close(source)


def remove(name: bytes, dir_fd: int) -> None:
    """Removes a file, or a folder that is empty."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except IsADirectoryError:
        os.rmdir(name, dir_fd=dir_fd)


def discard(name: bytes, dir_fd: int) -> None:
    """Removes a file, or a folder with all that is in it."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except IsADirectoryError:
        fd = open_dir(name, dir_fd)
        try:
            remove_contents(fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=dir_fd)


def mapped_xattrs(fd: int, name: bytes) -> list[bytes]:
    """The attributes of an entry in which mapped-xattr keeps metadata."""
    path = b"/proc/self/fd/%d/%b" % (fd, name)
    return [
        key for key in map(os.fsencode, os.listxattr(path, follow_symlinks=False)) if key in _MAPPED
    ]


def drop_xattrs(fd: int, name: bytes, keys: list[bytes]) -> None:
    """Takes attributes from an entry."""
    for key in keys:
        os.removexattr(b"/proc/self/fd/%d/%b" % (fd, name), key, follow_symlinks=False)


def grant(name: bytes, dir_fd: int, mode: int) -> None:
    """Gives an entry the permissions `mode` on the host."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def empty(fd: int, name: bytes) -> None:
    """Removes the content of `name` in the folder `fd`; of `fd` itself without a name."""
    if not name:
        os.truncate(f"/proc/self/fd/{fd}", 0)
        return
    child = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_TRUNC | os.O_CLOEXEC, dir_fd=fd)
    os.close(child)
