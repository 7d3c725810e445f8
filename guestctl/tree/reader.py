"""Reads a virtfs tree as the guest sees it, in sorted order, parents first, following nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from guestctl.archive.sparse import HOLE, data_regions
from guestctl.entry import TARGET_MAX, Entry, type_name
from guestctl.errors import TreeError
from guestctl.tree.metadata import (
    folder_aside,
    host_xattrs,
    kept_aside,
    metadata_text,
    small_text,
    unseal,
)
from guestctl.tree.state import OPEN_FILE, restore_access
from guestctl.tree.walk import Guide, Level, Told, Walk, shown
from guestctl.vmeta import (
    MAPPED_FILE,
    ROOT_FILE,
    SEAL,
    Meta,
    decode_rdev,
    decode_text,
    decode_xattrs,
)

__all__ = ["Plain", "Several", "TreeReader"]

_NOTHING = Meta()

Found = tuple[Entry, int]


@dataclass(slots=True)
class Plain:
    """A regular file without any oddity: its whole header in a tar is known already."""

    path: bytes
    size: int
    header: bytes


@dataclass(slots=True)
class Several:
    """Regular files without any oddity: their headers and content in a tar, good until the next.

    `path` is that of the last.
    """

    path: bytes
    count: int
    content: memoryview


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
        for found, fd in self.members(path):
            assert isinstance(found, Entry)
            yield found, fd

    def members(
        self, path: bytes = b"", guide: Guide | None = None
    ) -> Iterator[tuple[Entry | Plain | Several, int]]:
        """The same, but with a `guide` plain files are a `Plain` each, or `Several` at once."""
        self._top = path
        walk = Walk(self._root, path, metadata=self._file_model, guide=guide)
        at = path
        try:
            yield self._folder(walk.top.fd, self._top_text(path), Entry(b"", 0)), -1
            for level, name, form, at, fd, told in walk:
                if form == stat.S_IFDIR:
                    yield self._folder(fd, metadata_text(name, level.meta, at), Entry(at, 0)), -1
                elif told is None:
                    yield from self._leaf(level, name, form, at)
                elif isinstance(told[0], bytes):
                    yield from self._plain(level, name, at, told)
                elif guide is not None:
                    yield Several(at, told[2], guide.content(told)), -1
        except OSError as error:
            raise TreeError(f"{shown(at)}: {error.strerror}") from error
        finally:
            walk.close()

    def _plain(
        self, level: Level, name: bytes, at: bytes, told: Told
    ) -> Iterator[tuple[Entry | Plain, int]]:
        """A file that is as was told, or else looked at anew."""
        header, size, mtime = told
        try:
            fd = os.open(name, OPEN_FILE, dir_fd=level.fd)
        except OSError:
            yield from self._leaf(level, name, stat.S_IFREG, at)
            return
        try:
            info = os.fstat(fd)
            if (
                stat.S_ISREG(info.st_mode)
                and info.st_size == size
                and info.st_mtime_ns == mtime
                and info.st_nlink == 1
                and not os.listxattr(fd)
            ):
                yield Plain(at, size, header), fd
                return
        finally:
            os.close(fd)
        yield from self._leaf(level, name, stat.S_IFREG, at)

    def _top_text(self, path: bytes) -> bytes | None:
        """The metadata of the exported folder: a folder's own lies in its parent."""
        if not self._file_model:
            return None
        if not path:
            return small_text(ROOT_FILE, self._root, b"")
        parent, _, name = path.rpartition(b"/")
        above = Walk(self._root, parent, metadata=True)
        try:
            return metadata_text(name, above.top.meta, path)
        finally:
            above.close()

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
        where = shown(entry.path)
        if mode is None:
            entry.mode = info.st_mode & 0o177777
        elif not mode & 0o170000:
            entry.mode = form | (mode & 0o7777)
            if not quiet:
                self._warn(f"{where}: its metadata has no file type: taken as {type_name(form)}")
        else:
            entry.mode = mode & 0o177777
            claimed = stat.S_IFMT(mode)
            known = claimed == form or (form == stat.S_IFREG and claimed != stat.S_IFDIR)
            if not known or type_name(claimed) == "unknown":
                raise TreeError(
                    f"{where}: its metadata says {type_name(mode)}, but it is a {type_name(form)}",
                    hint="guestctl virtfs check TREE shows what else is wrong",
                )
        if meta.uid is None or meta.gid is None:
            if not quiet:
                lacks = "no owner" if meta.mode is not None else "no metadata"
                self._warn(f"{where}: {lacks}: taken as {self._owner[0]}:{self._owner[1]}")
            entry.uid = self._owner[0] if meta.uid is None else meta.uid
            entry.gid = self._owner[1] if meta.gid is None else meta.gid
        else:
            entry.uid, entry.gid = meta.uid, meta.gid

    # Entries

    def _folder(self, fd: int, text: bytes | None, entry: Entry) -> Entry:
        info = os.fstat(fd)
        own = host_xattrs(fd, entry, file_model=self._file_model)
        if self._file_model:
            meta = decode_text(text) if text else _NOTHING
            if self._aside and text:
                path = b"/".join(part for part in (self._top, entry.path) if part)
                folder_aside(fd, self._root, path, entry)
        else:
            meta = decode_xattrs(own)
        self._attributes(entry, meta, info)
        return entry

    def _leaf(self, level: Level, name: bytes, form: int, at: bytes) -> Iterator[Found]:
        if form != stat.S_IFREG:
            info = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
            if not stat.S_ISREG(info.st_mode):
                yield from self._foreign(level, name, at, info)
                return
        try:
            fd = os.open(name, OPEN_FILE, dir_fd=level.fd)
        except PermissionError:
            restore_access(name, level.fd, stat.S_IFREG, 0o600)
            fd = os.open(name, OPEN_FILE, dir_fd=level.fd)
        try:
            yield self._regular(level, name, at, fd)
        finally:
            os.close(fd)

    def _regular(  # noqa: PLR0912 (the types of entry are many)
        self, level: Level, name: bytes, at: bytes, fd: int
    ) -> Found:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise TreeError(f"{shown(at)}: the tree changes while it is read")
        entry = Entry(at, 0)
        own = host_xattrs(fd, entry, file_model=self._file_model)
        linked = info.st_nlink > 1
        text = None
        if self._file_model:
            text = metadata_text(name, level.meta, at)
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
                self._warn(f"{shown(at)}: a device without a number: taken as 0:0")
            else:
                entry.rdev = decode_rdev(meta.rdev)
        if self._aside and text and self._file_model:
            unseal(entry, kept_aside(level.meta, name, entry), self._warn)
        elif not self._file_model and entry.xattrs:
            unseal(entry, own.get(SEAL), self._warn)
        if linked:
            self._links[info.st_dev, info.st_ino] = entry, meta, info.st_nlink
        return entry, fd if kind == stat.S_IFREG else -1

    def _again(
        self, first: tuple[Entry, Meta, int], at: bytes, meta: Meta, info: os.stat_result
    ) -> Entry:
        known, its_meta, left = first
        if meta != its_meta:
            self._warn(
                f"{shown(at)}: its metadata differs from that of {known.shown}, which it is a "
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
            walk = Walk(self._root, self._top, metadata=True)
            try:
                for level, name, form, at, _, _ in walk:
                    if form == stat.S_IFDIR:
                        continue
                    info = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
                    if info.st_nlink > 1 and (text := metadata_text(name, level.meta, at)):
                        self._known.setdefault((info.st_dev, info.st_ino), text)
            finally:
                walk.close()
        return self._known.get(ident)

    def _target(self, fd: int, at: bytes) -> bytes:
        target = os.read(fd, TARGET_MAX + 1)
        if not target or len(target) > TARGET_MAX or b"\0" in target:
            raise TreeError(f"{shown(at)}: a symlink whose target is empty, too long or has a NUL")
        return target

    def _foreign(
        self, level: Level, name: bytes, at: bytes, info: os.stat_result
    ) -> Iterator[Found]:
        """What QEMU would never make: a link, fifo, socket or device of the host."""
        entry = Entry(at, 0)
        text = metadata_text(name, level.meta, at)
        meta = decode_text(text) if text else _NOTHING
        if meta.mode is not None and stat.S_IFMT(meta.mode) not in (0, stat.S_IFMT(info.st_mode)):
            raise TreeError(
                f"{shown(at)}: its metadata says {type_name(meta.mode)}, "
                f"but it is a {type_name(info.st_mode)} of the host"
            )
        self._attributes(entry, meta, info)
        if stat.S_ISLNK(info.st_mode):
            entry.target = os.readlink(name, dir_fd=level.fd)
        elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
            entry.rdev = os.major(info.st_rdev), os.minor(info.st_rdev)
        yield entry, -1
