"""Reads a virtfs tree as the guest sees it, in sorted order, parents first, following nothing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from guestctl.archive.sparse import HOLE, data_regions
from guestctl.entry import TARGET_MAX, Entry, type_name
from guestctl.errors import TreeError
from guestctl.tree.state import OPEN_DIR, OPEN_FILE, open_dir, read_small, restore_access
from guestctl.vmeta import (
    ACL_PREFIX,
    ASIDE_PREFIX,
    MAPPED_FILE,
    META_DIR,
    META_MAX,
    RESERVED,
    ROOT_FILE,
    SEAL,
    VIRTFS_PREFIX,
    Meta,
    decode_rdev,
    decode_text,
    decode_xattrs,
)

__all__ = ["TreeReader"]

_OPEN_LEVELS = 100  # folders held open on the way down; those above are found again by ".."
_NOTHING = Meta()

Found = tuple[Entry, int]


@dataclass(slots=True)
class _Level:
    path: bytes
    fd: int
    meta: int
    ident: tuple[int, int]
    names: list[tuple[bytes, int]]  # in reverse order; the type is the host's


def _ident(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def _shown(path: bytes) -> str:
    return os.fsdecode(path) or "."


class TreeReader:
    """One walk over a tree or a part of it."""

    def __init__(
        self,
        root: int,
        model: str,
        *,
        warn: Callable[[str], None],
        aside: bool = True,
        owner: tuple[int, int] = (0, 0),
        content: bool = True,
    ) -> None:
        """`owner` is given to entries whose metadata names none; `content` opens the files."""
        self._root = root
        self._file_model = model == MAPPED_FILE
        self._warn = warn
        self._aside = aside
        self._owner = owner
        self._content = content
        self._links: dict[tuple[int, int], tuple[Entry, Meta, int]] = {}
        self._known: dict[tuple[int, int], bytes] | None = None
        self._top = b""

    def walk(self, path: bytes = b"") -> Iterator[Found]:
        """Yields each entry below `path` (itself first, as the root), and its open content or -1.

        The descriptor is closed when the next entry is asked for. A hard link's is -1.

        :raise TreeError: something there is not what a guest could have made.
        """
        self._top = path
        stack = [self._start(path)]
        try:
            yield self._folder(stack[0].fd, self._start_text(path), Entry(b"", 0)), -1
            while stack:
                level = stack[-1]
                if not level.names:
                    self._leave(stack)
                    continue
                name, form = level.names.pop()
                at = level.path + b"/" + name if level.path else name
                if form == stat.S_IFDIR:
                    fd = self._open_dir(name, level.fd, at)
                    try:
                        entry = self._folder(fd, self._text(level, name, at), Entry(at, 0))
                    except BaseException:
                        os.close(fd)
                        raise
                    stack.append(self._level(at, fd))
                    self._shut_upper(stack)
                    yield entry, -1
                else:
                    yield from self._leaf(level, name, form, at)
        finally:
            for level in stack:
                self._close(level)

    # The way down and up

    def _start(self, path: bytes) -> _Level:
        fd = os.open(b".", OPEN_DIR, dir_fd=self._root)
        for name in path.split(b"/") if path else ():
            try:
                below = self._open_dir(name, fd, path)
            finally:
                os.close(fd)
            fd = below
        return self._level(b"", fd)

    def _start_text(self, path: bytes) -> bytes | None:
        """The metadata of the exported folder: a folder's own lies in its parent."""
        if not self._file_model:
            return None
        if not path:
            return self._small(ROOT_FILE, self._root, b"")
        parent, _, name = path.rpartition(b"/")
        above = self._start(parent)
        try:
            return self._text(above, name, path)
        finally:
            self._close(above)

    def _open_dir(self, name: bytes, dir_fd: int, at: bytes) -> int:
        try:
            return open_dir(name, dir_fd)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise TreeError(f"{_shown(at)}: not a directory") from None
            raise TreeError(f"{_shown(at)}: {error.strerror}") from error

    def _level(self, path: bytes, fd: int) -> _Level:
        names = []
        with os.scandir(fd) as entries:
            for item in entries:
                name = os.fsencode(item.name)
                if name in RESERVED:
                    continue
                if item.is_file(follow_symlinks=False):
                    form = stat.S_IFREG
                elif item.is_dir(follow_symlinks=False):
                    form = stat.S_IFDIR
                else:
                    form = 0
                names.append((name, form))
        names.sort(reverse=True)
        return _Level(path, fd, self._open_meta(fd, path), (0, 0), names)

    def _open_meta(self, fd: int, path: bytes) -> int:
        if not self._file_model:
            return -1
        try:
            return open_dir(META_DIR, fd)
        except FileNotFoundError:
            return -1
        except OSError as error:
            raise TreeError(
                f"{_shown(path)}: its {META_DIR.decode()} is no directory: {error.strerror}"
            ) from None

    def _shut_upper(self, stack: list[_Level]) -> None:
        if len(stack) > _OPEN_LEVELS:
            upper = stack[-_OPEN_LEVELS]
            upper.ident = _ident(upper.fd)
            self._close(upper)

    def _leave(self, stack: list[_Level]) -> None:
        level = stack.pop()
        if stack and stack[-1].fd < 0:
            upper = stack[-1]
            upper.fd = os.open(b"..", OPEN_DIR, dir_fd=level.fd)
            if _ident(upper.fd) != upper.ident:
                self._close(level)
                raise TreeError(f"{_shown(upper.path)}: the tree changes while it is read")
            upper.meta = self._open_meta(upper.fd, upper.path)
        self._close(level)

    @staticmethod
    def _close(level: _Level) -> None:
        for fd in (level.fd, level.meta):
            if fd >= 0:
                os.close(fd)
        level.fd = level.meta = -1

    # Metadata

    def _small(self, name: bytes, dir_fd: int, at: bytes) -> bytes | None:
        try:
            return read_small(name, dir_fd, META_MAX)
        except ValueError as error:
            raise TreeError(f"{_shown(at)}: its metadata is {error}") from None
        except OSError as error:
            raise TreeError(f"{_shown(at)}: its metadata: {error.strerror}") from error

    def _text(self, level: _Level, name: bytes, at: bytes) -> bytes | None:
        if level.meta < 0:
            return None
        if self._aside:
            return self._small(name, level.meta, at)
        try:
            fd = os.open(name, OPEN_FILE, dir_fd=level.meta)
        except FileNotFoundError:
            return None
        except OSError:
            return self._small(name, level.meta, at)
        try:
            text = os.read(fd, META_MAX + 1)
        except OSError:
            text = b""
        finally:
            os.close(fd)
        if not text or len(text) > META_MAX:
            return self._small(name, level.meta, at)  # it says what is wrong, if anything is
        return text

    def _attributes(
        self, entry: Entry, meta: Meta, info: os.stat_result, *, quiet: bool = False
    ) -> None:
        """Fills in what the guest would see; per key, the host's where the metadata has none."""
        entry.mtime = info.st_mtime_ns
        if (
            meta.mode is not None
            and meta.uid is not None
            and meta.gid is not None
            and ((meta.mode ^ info.st_mode) & 0o170000 == 0)
        ):
            entry.mode, entry.uid, entry.gid = meta.mode & 0o177777, meta.uid, meta.gid
            return
        form = stat.S_IFMT(info.st_mode)
        mode = meta.mode
        shown = _shown(entry.path)
        if mode is None:
            entry.mode = info.st_mode & 0o177777
        elif not mode & 0o170000:
            entry.mode = form | (mode & 0o7777)
            if not quiet:
                self._warn(f"{shown}: its metadata has no file type: taken as {type_name(form)}")
        else:
            entry.mode = mode & 0o177777
            claimed = stat.S_IFMT(mode)
            known = claimed == form or (form == stat.S_IFREG and claimed != stat.S_IFDIR)
            if not known or type_name(claimed) == "unknown":
                raise TreeError(
                    f"{shown}: its metadata says {type_name(mode)}, but it is a {type_name(form)}",
                    hint="guestctl virtfs check TREE shows what else is wrong",
                )
        if meta.uid is None or meta.gid is None:
            if not quiet:
                lacks = "no owner" if meta.mode is not None else "no metadata"
                self._warn(f"{shown}: {lacks}: taken as {self._owner[0]}:{self._owner[1]}")
            entry.uid = self._owner[0] if meta.uid is None else meta.uid
            entry.gid = self._owner[1] if meta.gid is None else meta.gid
        else:
            entry.uid, entry.gid = meta.uid, meta.gid

    def _xattrs(self, fd: int, entry: Entry) -> dict[bytes, bytes]:
        """Sorts the host's attributes of an entry; returns those that are QEMU's."""
        names = os.listxattr(fd)
        own: dict[bytes, bytes] = {}
        for shown in names:
            name = os.fsencode(shown)
            if not name.startswith(b"user."):
                continue
            if not name.startswith(VIRTFS_PREFIX):
                entry.xattrs[name] = os.getxattr(fd, name)
            elif not self._file_model:
                if name.startswith(ASIDE_PREFIX):
                    entry.xattrs[name[len(ASIDE_PREFIX) :]] = os.getxattr(fd, name)
                elif name.startswith(ACL_PREFIX):
                    entry.xattrs[name[len(VIRTFS_PREFIX) :]] = os.getxattr(fd, name)
                else:
                    own[name] = os.getxattr(fd, name)
        return own

    def _kept_aside(self, meta: int, name: bytes, entry: Entry) -> bytes | None:
        """Adds what stage kept on the metadata file; returns the seal."""
        fd = os.open(name, OPEN_FILE, dir_fd=meta)
        try:
            for shown in os.listxattr(fd):
                key = os.fsencode(shown)
                if key.startswith(ASIDE_PREFIX):
                    entry.xattrs[key[len(ASIDE_PREFIX) :]] = os.getxattr(fd, key)
                elif key == SEAL:
                    return os.getxattr(fd, key)
        except OSError:
            pass
        finally:
            os.close(fd)
        return None

    def _unseal(self, entry: Entry, seal: bytes | None) -> None:
        if b"security.capability" in entry.xattrs and seal != b"%d %d" % (entry.mtime, entry.size):
            del entry.xattrs[b"security.capability"]
            self._warn(f"{_shown(entry.path)}: it was changed, and so has lost its capability")

    # Entries

    def _folder(self, fd: int, text: bytes | None, entry: Entry) -> Entry:
        info = os.fstat(fd)
        own = self._xattrs(fd, entry)
        if self._file_model:
            meta = decode_text(text) if text else _NOTHING
            if self._aside and text:
                self._folder_aside(fd, entry)
        else:
            meta = decode_xattrs(own)
        self._attributes(entry, meta, info)
        return entry

    def _folder_aside(self, fd: int, entry: Entry) -> None:
        path = (
            self._top + b"/" + entry.path if self._top and entry.path else entry.path or self._top
        )
        if not path:
            self._kept_aside(self._root, ROOT_FILE, entry)
            return
        above = os.open(b"..", OPEN_DIR, dir_fd=fd)
        try:
            meta = open_dir(META_DIR, above)
            try:
                self._kept_aside(meta, path.rpartition(b"/")[2], entry)
            finally:
                os.close(meta)
        except FileNotFoundError:
            pass
        finally:
            os.close(above)

    def _leaf(self, level: _Level, name: bytes, form: int, at: bytes) -> Iterator[Found]:
        if form != stat.S_IFREG:
            info = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
            if not stat.S_ISREG(info.st_mode):
                yield from self._foreign(level, name, at, info)
                return
        try:
            fd = os.open(name, OPEN_FILE, dir_fd=level.fd)
        except PermissionError:
            try:
                restore_access(name, level.fd, stat.S_IFREG, 0o600)
                fd = os.open(name, OPEN_FILE, dir_fd=level.fd)
            except OSError as error:
                raise TreeError(f"{_shown(at)}: {error.strerror}") from error
        except OSError as error:
            raise TreeError(f"{_shown(at)}: {error.strerror}") from error
        try:
            yield self._regular(level, name, at, fd)
        except OSError as error:
            raise TreeError(f"{_shown(at)}: {error.strerror}") from error
        finally:
            os.close(fd)

    def _regular(  # noqa: PLR0912 (the types of entry are many)
        self, level: _Level, name: bytes, at: bytes, fd: int
    ) -> Found:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise TreeError(f"{_shown(at)}: the tree changes while it is read")
        entry = Entry(at, 0)
        own = self._xattrs(fd, entry)
        linked = info.st_nlink > 1
        text = None
        if self._file_model:
            text = self._text(level, name, at)
            if text is None and linked:
                text = self._of_another_name((info.st_dev, info.st_ino))
            meta = decode_text(text) if text else _NOTHING
        else:
            meta = decode_xattrs(own)
        if linked:
            first = self._links.get((info.st_dev, info.st_ino))
            if first is not None:
                return self._again(first, at, meta, info), -1
        self._attributes(entry, meta, info)
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFREG:
            entry.size = info.st_size
            if self._content and info.st_blocks * 512 + HOLE <= info.st_size:
                entry.sparse = data_regions(fd, info.st_size)
        elif kind == stat.S_IFLNK:
            entry.target = self._target(fd, at)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            if meta.rdev is None:
                self._warn(f"{_shown(at)}: a device without a number: taken as 0:0")
            else:
                entry.rdev = decode_rdev(meta.rdev)
        if self._aside and text and self._file_model:
            self._unseal(entry, self._kept_aside(level.meta, name, entry))
        elif not self._file_model and entry.xattrs:
            self._unseal(entry, own.get(SEAL))
        if linked:
            self._links[info.st_dev, info.st_ino] = entry, meta, info.st_nlink
        return entry, fd if kind == stat.S_IFREG else -1

    def _again(
        self, first: tuple[Entry, Meta, int], at: bytes, meta: Meta, info: os.stat_result
    ) -> Entry:
        known, its_meta, left = first
        if meta != its_meta:
            self._warn(
                f"{_shown(at)}: its metadata differs from that of {known.shown}, which it is a "
                "hard link to"
            )
        if left <= 2:  # all names seen
            del self._links[info.st_dev, info.st_ino]
        else:
            self._links[info.st_dev, info.st_ino] = known, its_meta, left - 1
        return Entry(
            at, known.mode, known.uid, known.gid, known.mtime, link=known.path, rdev=known.rdev
        )

    def _of_another_name(self, ident: tuple[int, int]) -> bytes | None:
        """The metadata that another name of the same file has: one look at the whole tree."""
        if self._known is None:
            self._known = {}
            stack = [self._start(self._top)]
            try:
                while stack:
                    level = stack[-1]
                    if not level.names:
                        self._leave(stack)
                        continue
                    name, form = level.names.pop()
                    at = level.path + b"/" + name if level.path else name
                    if form == stat.S_IFDIR:
                        stack.append(self._level(at, self._open_dir(name, level.fd, at)))
                        self._shut_upper(stack)
                        continue
                    info = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
                    if info.st_nlink > 1 and (text := self._text(level, name, at)):
                        self._known.setdefault((info.st_dev, info.st_ino), text)
            finally:
                for level in stack:
                    self._close(level)
        return self._known.get(ident)

    def _target(self, fd: int, at: bytes) -> bytes:
        target = os.read(fd, TARGET_MAX + 1)
        if not target or len(target) > TARGET_MAX or b"\0" in target:
            raise TreeError(f"{_shown(at)}: a symlink whose target is empty, too long or has a NUL")
        return target

    def _foreign(
        self, level: _Level, name: bytes, at: bytes, info: os.stat_result
    ) -> Iterator[Found]:
        """What QEMU would never make: a link, fifo, socket or device of the host."""
        entry = Entry(at, 0)
        text = self._text(level, name, at)
        meta = decode_text(text) if text else _NOTHING
        if meta.mode is not None and stat.S_IFMT(meta.mode) not in (0, stat.S_IFMT(info.st_mode)):
            raise TreeError(
                f"{_shown(at)}: its metadata says {type_name(meta.mode)}, "
                f"but it is a {type_name(info.st_mode)} of the host"
            )
        self._attributes(entry, meta, info)
        if stat.S_ISLNK(info.st_mode):
            entry.target = os.readlink(name, dir_fd=level.fd)
        elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
            entry.rdev = os.major(info.st_rdev), os.minor(info.st_rdev)
        yield entry, -1
