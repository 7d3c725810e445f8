"""Writes entries into a virtfs tree: each with complete metadata, none through a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from guestctl.archive.stream import Stream, copy_range, write_all
from guestctl.entry import TARGET_MAX, Entry, type_name
from guestctl.errors import TreeError
from guestctl.pump import Pump
from guestctl.tree.directories import Directories
from guestctl.tree.filler import FILE_MAX, Filler
from guestctl.tree.folders import Folder
from guestctl.tree.metadata import encoded
from guestctl.tree.state import NEW_FILE, read_small
from guestctl.vmeta import (
    META_MAX,
    encode_text,
    encode_xattrs,
)

__all__ = ["TreeWriter"]

_TIME_MAX = 1 << 62  # ns; later ones may be out of the system's range


class TreeWriter(Directories):
    """Used for one stage: the entry methods in archive order, then `finish`, and always `close`."""

    def __init__(
        self,
        root: int,
        model: str,
        *,
        label: str,
        into: bytes = b"",
        follow_dirs: bool = False,
        warn: Callable[[str], None],
        filler: Filler | None = None,
    ) -> None:
        """`root` is a descriptor of the tree's root; `label` names the source in messages.

        `filler` may take small files of a plain archive (mapped-file only).
        """
        super().__init__(
            root, model, label=label, into=into, follow=follow_dirs, warn=warn, filler=filler
        )
        self._later: list[Entry] = []
        self._pump = Pump()

    def _create(self, here: Folder, name: bytes, entry: Entry) -> int:
        try:
            fd = os.open(name, NEW_FILE, 0o600, dir_fd=here.fd)
        except FileExistsError:
            self._clear(here, name, entry)
            fd = os.open(name, NEW_FILE, 0o600, dir_fd=here.fd)
        if not self._exact:
            os.fchmod(fd, 0o600)
        return fd

    def leaf(self, entry: Entry, stream: Stream | None = None) -> None:
        """Writes anything but a folder or a hard link; a file's content comes from `stream`."""
        here, name = self._place(entry)
        if not name:
            raise self._fail(entry, f"a {type_name(entry.mode)} cannot be the root")
        target = self._target(entry) if stat.S_ISLNK(entry.mode) else b""
        if not self._file_model:
            pairs = encoded(encode_xattrs, entry, self._label)
        else:
            text = encoded(encode_text, entry, self._label)
            if stream is not None and self._handed_over(here, name, entry, stream, text):
                return
            self._await(here.path, name)
        direct, aside = self._split(entry) if entry.xattrs else ([], [])
        fd = self._create(here, name, entry)
        try:
            if stream is not None:
                start = stream.region(entry.size) if entry.sparse is None else -1
                if start >= 0:
                    self._copy_beside(fd, stream, start, entry)
                else:
                    self._content(fd, entry, stream)
            elif target:
                write_all(fd, target)
            if direct:
                self._set(fd, direct, entry)
            if not self._file_model:
                self._set(fd, [*pairs, *aside], entry)
            self._stamp(fd, entry.mtime, entry)
        finally:
            os.close(fd)
        if self._file_model:
            meta = here.meta if here.meta >= 0 else self._meta(here)
            self._text(meta, name, text, aside, entry)

    def _handed_over(
        self, here: Folder, name: bytes, entry: Entry, stream: Stream, text: bytes
    ) -> bool:
        """Leaves a small file of a plain archive to the filler."""
        filler = self._filler
        if (
            filler is None
            or stream.fd < 0
            or entry.size >= FILE_MAX
            or entry.sparse is not None
            or entry.xattrs
            or not 0 <= entry.mtime < _TIME_MAX
            or not filler.ready(stream.offset)
        ):
            return False
        path = here.path + b"/" + name if here.path else name
        if path in self._times or path in self._dirs:
            return False  # a folder is in its place, which is known as one
        meta = here.meta if here.meta >= 0 else self._meta(here)
        offset = stream.left_to_others(entry.size)
        filler.put(here.path, here.fd, meta, (name, text, offset, entry.size, entry.mtime))
        return True

    def _copy_beside(self, fd: int, stream: Stream, start: int, entry: Entry) -> None:
        """Has a large file copied while the next ones are dealt with."""
        source, target = os.dup(stream.fd), os.dup(fd)

        def job(wanted: bool) -> None:
            try:
                if wanted:
                    if copy_range(source, start, target, entry.size) != entry.size:
                        raise self._fail(entry, "the archive is cut short within it")
                    self._stamp(target, entry.mtime, entry)
            except OSError as error:
                raise TreeError(
                    f"{self._label}: {entry.shown}: cannot be written: {error.strerror}"
                ) from error
            finally:
                os.close(source)
                os.close(target)

        self._pump.put(job)

    def _target(self, entry: Entry) -> bytes:
        target = entry.target
        if not target or len(target) > TARGET_MAX or b"\0" in target:
            raise self._fail(entry, f"a link target of {len(target)} bytes, or with a NUL byte")
        return target

    def _content(self, fd: int, entry: Entry, stream: Stream) -> None:
        if entry.sparse is None:
            if entry.size:
                stream.copy(fd, entry.size)
            return
        for offset, length in entry.sparse:
            os.lseek(fd, offset, os.SEEK_SET)
            stream.copy(fd, length)
        os.ftruncate(fd, entry.size)

    def hardlink(self, entry: Entry, stream: Stream | None = None, size: int = 0) -> None:
        """Links data and metadata. A target that comes later is waited for until `finish`.

        With a `stream`, `size` bytes of it become the content of both names (cpio).
        """
        if not self._link(entry):
            if size:
                raise self._fail(entry, "a hard link with content to what is not there")
            self._later.append(entry)
            return
        if stream is not None and size:
            here, name = self._place(entry)
            stored = self._stored(here, name)
            if not stat.S_ISREG(stored):
                raise self._fail(entry, f"a hard link with content to a {type_name(stored)}")
            fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here.fd)
            try:
                os.ftruncate(fd, 0)
                stream.copy(fd, size)
                self._stamp(fd, entry.mtime, entry)
            finally:
                os.close(fd)

    def _link(self, entry: Entry) -> bool:
        target = self._full(entry.link or b"")
        parent, _, old = target.rpartition(b"/")
        shown = os.fsdecode(entry.link or b"")
        try:
            there = self._dir(parent, entry, create=False)
        except KeyError:
            return False
        # A copy: looking for the other folder may close this one.
        there = Folder(there.path, os.dup(there.fd))
        try:
            here, name = self._place(entry)
            if not old or not name:
                raise self._fail(entry, f"a hard link to the directory {shown or '.'}")
            if there.path == here.path and old == name:
                raise self._fail(entry, "a hard link to itself")
            mode = self._stored(there, old)
            if not mode:
                return False
            if stat.S_ISDIR(mode):
                raise self._fail(entry, f"a hard link to the directory {shown}")
            self._clear(here, name, entry)
            os.link(old, name, src_dir_fd=there.fd, dst_dir_fd=here.fd, follow_symlinks=False)
            if self._file_model:
                self._link_text_of(there, old, here, name, mode)
        finally:
            there.close()
        return True

    def _link_text_of(
        self, there: Folder, old: bytes, here: Folder, name: bytes, mode: int
    ) -> None:
        meta = self._meta(there)
        if read_small(old, meta, META_MAX) is None:
            self._text(meta, old, encode_text(0, 0, mode), [], Entry(old, mode))
        os.link(old, name, src_dir_fd=meta, dst_dir_fd=self._meta(here), follow_symlinks=False)

    def finish(self) -> None:
        """Makes the links that waited, and sets the times of folders, deepest first."""
        self._pump.drain()
        if self._filler is not None:
            self._filler.settle()
        self._link_later()
        self._stamp_all()

    def _link_later(self) -> None:
        """Makes the links that wait for what came after them, each after what it links to."""
        waiting: dict[bytes, list[Entry]] = {}
        for entry in self._later:
            waiting.setdefault(entry.link or b"", []).append(entry)
        own = {entry.path for entry in self._later}
        todo = [path for path in waiting if path not in own]
        todo.reverse()
        while waiting:
            # Those that wait for each other come last, in their order: a member may have helped.
            path = todo.pop() if todo else next(iter(waiting))
            for entry in waiting.pop(path, ()):
                if not self._link(entry):
                    shown = os.fsdecode(path)
                    raise self._fail(entry, f"a hard link to {shown}, which is not there")
                todo.append(entry.path)

    def close(self) -> None:
        if self._filler is not None:
            self._filler.close()
        self._pump.close()
        self._close_all()
