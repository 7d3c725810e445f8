"""A directory of plain host files as a sequence of entries, owned by root, following nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from guestctl.archive.sparse import HOLE, data_regions
from guestctl.archive.stream import Stream
from guestctl.entry import Entry
from guestctl.errors import ArchiveError
from guestctl.tree.state import OPEN_DIR, OPEN_FILE
from guestctl.vmeta import META_DIR, MODE_XATTR, RESERVED

__all__ = ["HostDir"]

_VCS = frozenset((b".git", b".hg", b".svn", b".bzr"))
_DEPTH = 400


class HostDir:
    """Reads a folder; see `archive.Reader`."""

    late_content = False

    def __init__(self, fd: int, name: str, *, exclude_vcs: bool = False) -> None:
        self.name = name
        self.left = 0
        self.stream = Stream(lambda _n: b"", name)
        self.warnings: list[str] = []
        self._fd = fd
        self._exclude = _VCS if exclude_vcs else frozenset()
        self._links: dict[tuple[int, int], bytes] = {}

    def close(self) -> None:
        pass

    def _fail(self, path: bytes, what: str, hint: str = "") -> ArchiveError:
        return ArchiveError(f"{self.name}: {os.fsdecode(path) or '.'}: {what}", hint=hint)

    def _tree_already(self, path: bytes, sign: bytes) -> ArchiveError:
        return self._fail(
            path,
            f"it holds {sign.decode()}: it is a virtfs tree already",
            "collect it first, and stage the archive",
        )

    def __iter__(self) -> Iterator[Entry]:
        root = os.open(b".", OPEN_DIR, dir_fd=self._fd)
        stack = [(b"", root, self._names(root, b""))]
        try:
            yield self._entry(b"", root, os.fstat(root))
            while stack:
                path, fd, names = stack[-1]
                if not names:
                    os.close(fd)
                    stack.pop()
                    continue
                name = names.pop()
                at = path + b"/" + name if path else name
                try:
                    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISDIR(info.st_mode):
                        if len(stack) > _DEPTH:
                            raise self._fail(at, f"more than {_DEPTH} directories deep")
                        below = os.open(name, OPEN_DIR, dir_fd=fd)
                        stack.append((at, below, self._names(below, at)))
                        yield self._entry(at, below, os.fstat(below))
                    elif stat.S_ISREG(info.st_mode):
                        yield from self._file(at, name, fd)
                    else:
                        yield self._other(at, name, fd, info)
                except OSError as error:
                    raise self._fail(at, error.strerror or str(error)) from error
        finally:
            for _, fd, _ in stack:
                os.close(fd)

    def _names(self, fd: int, path: bytes) -> list[bytes]:
        names = sorted(map(os.fsencode, os.listdir(fd)), reverse=True)
        if not RESERVED.isdisjoint(names):
            raise self._tree_already(path, META_DIR)
        return [name for name in names if name not in self._exclude]

    def _entry(self, path: bytes, fd: int, info: os.stat_result) -> Entry:
        entry = Entry(path, info.st_mode, mtime=info.st_mtime_ns)
        if fd >= 0:
            for shown in os.listxattr(fd):
                name = os.fsencode(shown)
                if name == MODE_XATTR:
                    raise self._tree_already(path, name)
                if name.startswith((b"user.", b"security.capability", b"system.posix_acl_")):
                    entry.xattrs[name] = os.getxattr(fd, name)
        return entry

    def _again(self, path: bytes, info: os.stat_result) -> bytes | None:
        """The first name of a file of several, or None if this is it."""
        if info.st_nlink < 2:
            return None
        first = self._links.setdefault((info.st_dev, info.st_ino), path)
        return None if first == path else first

    def _file(self, path: bytes, name: bytes, dir_fd: int) -> Iterator[Entry]:
        fd = os.open(name, OPEN_FILE, dir_fd=dir_fd)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise self._fail(path, "it changes while it is read")
            first = self._again(path, info)
            entry = self._entry(path, fd, info)
            if first is not None:
                entry.link = first
                self.left = 0
            else:
                entry.size = self.left = info.st_size
                if info.st_blocks * 512 + HOLE <= info.st_size:
                    entry.sparse = data_regions(fd, info.st_size)
                    if entry.sparse is not None:
                        self._regions(fd, entry.sparse)
                if entry.sparse is None:
                    self.stream = Stream(lambda n: os.read(fd, n), self.name, fd=fd)
                self.stream.at = entry.path
            yield entry
        finally:
            os.close(fd)

    def _regions(self, fd: int, regions: list[tuple[int, int]]) -> None:
        todo = list(reversed(regions))

        def read(n: int) -> bytes:
            if not todo:
                return b""
            offset, length = todo.pop()
            data = os.pread(fd, min(n, length), offset)
            if data and len(data) < length:
                todo.append((offset + len(data), length - len(data)))
            return data

        self.left = sum(length for _, length in regions)
        self.stream = Stream(read, self.name)

    def _other(self, path: bytes, name: bytes, dir_fd: int, info: os.stat_result) -> Entry:
        entry = self._entry(path, -1, info)
        entry.link = self._again(path, info)
        self.left = 0
        if stat.S_ISLNK(info.st_mode):
            entry.target = os.readlink(name, dir_fd=dir_fd)
        elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
            entry.rdev = os.major(info.st_rdev), os.minor(info.st_rdev)
        return entry
