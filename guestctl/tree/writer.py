"""Writes entries into a virtfs tree: each with complete metadata, none through a link."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable

from guestctl.archive.stream import Stream, copy_range, write_all
from guestctl.entry import TARGET_MAX, Entry, type_name
from guestctl.errors import ArchiveError, TreeError
from guestctl.pump import Pump
from guestctl.tree.folders import Folder, Folders
from guestctl.tree.metadata import Pairs, encoded, set_xattrs, split_xattrs, write_text
from guestctl.tree.state import NEW_FILE, open_dir, read_small
from guestctl.vmeta import (
    ACL_PREFIX,
    ASIDE_PREFIX,
    META_DIR,
    META_MAX,
    ROOT_FILE,
    encode_text,
    encode_xattrs,
)

__all__ = ["TreeWriter"]

_IMPLICIT = stat.S_IFDIR | 0o755


class TreeWriter(Folders):
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
    ) -> None:
        """`root` is a descriptor of the tree's root; `label` names the source in messages."""
        self.aside = False  # whether anything was kept aside
        self.begun = False  # whether anything was written
        self.began = 0  # the time of what no member names
        self.implied = {b""}  # folders that no member names
        super().__init__(root, model, label=label, into=into, follow=follow_dirs)
        self._warn = warn
        self._times: dict[bytes, int] = {}
        self._later: list[Entry] = []
        self._pump = Pump()

    # Folders

    def begin(self, mtime: int, *, fresh: bool) -> None:
        """Makes the folder to stage into, and the root's own metadata where it has none.

        With `fresh`, what no member names gets `mtime`: the time of staging must not show.
        """
        self.begun = True
        self.began = mtime
        root = Entry(b"", _IMPLICIT)
        if not self._file_model:
            self._attributes(self._root, root, keep=True)
        elif ROOT_FILE not in map(os.fsencode, os.listdir(self._root.fd)):
            self._attributes(self._root, root)
        into = self._dir(self._into, Entry(self._into, _IMPLICIT, mtime=mtime))
        if fresh:
            self._times[into.path] = mtime

    def _adopt(self, child: Folder, parent: Folder, entry: Entry) -> None:
        self.implied.add(child.path)
        self._times[child.path] = entry.mtime
        self._attributes(child, Entry(child.path, _IMPLICIT), parent=parent)

    def _clear(self, here: Folder, name: bytes, entry: Entry) -> None:
        """Removes what stands at `name`, data and metadata; a folder only if it is empty."""
        try:
            os.unlink(name, dir_fd=here.fd)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):
            self._clear_dir(here, name, entry)
        if self._file_model:
            meta = self._meta(here, create=False)
            if meta >= 0:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=meta)

    def _clear_dir(self, here: Folder, name: bytes, entry: Entry) -> None:
        path = here.path + b"/" + name if here.path else name
        fd = open_dir(name, here.fd)
        try:
            if [other for other in os.listdir(fd) if os.fsencode(other) != META_DIR]:
                raise self._fail(entry, "it would replace a directory that is not empty")
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(META_DIR, dir_fd=fd)
        except OSError as error:
            raise self._fail(entry, f"it would replace a directory: {error.strerror}") from error
        finally:
            os.close(fd)
        for at in [at for at, known in self._dirs.items() if known.path == path]:
            self._dirs.pop(at).close()
        self._times.pop(path, None)
        os.rmdir(name, dir_fd=here.fd)

    # Metadata

    def _attributes(
        self, child: Folder, entry: Entry, *, parent: Folder | None = None, keep: bool = False
    ) -> None:
        """Sets the metadata of a folder; with `keep`, only where there is none (mapped-xattr)."""
        direct, aside = self._split(entry)
        if not self._file_model:
            have = {os.fsencode(name) for name in os.listxattr(child.fd)}
            if keep and b"user.virtfs.mode" in have:
                return
            for name in have:
                if name.startswith((ASIDE_PREFIX, ACL_PREFIX)):
                    os.removexattr(child.fd, name)
            pairs = encoded(encode_xattrs, entry, self._label)
            self._set(child.fd, [*pairs, *direct, *aside], entry)
            return
        text = encoded(encode_text, entry, self._label)
        if parent is None:
            self._text(self._root.fd, ROOT_FILE, text, aside, entry)
        else:
            name = child.path.rpartition(b"/")[2]
            self._text(self._meta(parent), name, text, aside, entry)
        if direct:
            self._set(child.fd, direct, entry)

    def _text(self, meta: int, name: bytes, text: bytes, aside: Pairs, entry: Entry) -> None:
        write_text(meta, name, text, aside, entry, self._warn, exact=self._exact)

    def _set(self, fd: int, pairs: Pairs, entry: Entry) -> None:
        set_xattrs(fd, pairs, entry, self._warn)

    def _split(self, entry: Entry) -> tuple[Pairs, Pairs]:
        direct, aside = split_xattrs(entry, self._warn, file_model=self._file_model)
        self.aside = self.aside or bool(aside)
        return direct, aside

    # Entries

    def _place(self, entry: Entry) -> tuple[Folder, bytes]:
        path = self._full(entry.path)
        parent, _, name = path.rpartition(b"/")
        here = self._dirs.get(parent)
        return here or self._dir(parent, entry), name

    def directory(self, entry: Entry) -> None:
        path = self._full(entry.path)
        if not path:
            self._attributes(self._root, entry)
            self._times[b""] = entry.mtime
            self.implied.discard(b"")
            return
        here, name = self._place(entry)
        child = self._dirs.get(path)
        if child is None:
            mode = self._stored(here, name)
            if stat.S_ISLNK(mode):
                try:
                    self._resolve(here, name, entry)
                except ArchiveError:
                    pass  # it leads nowhere: the directory takes its place
                else:
                    if self._follow:
                        return  # the link stays, and so do the attributes of where it leads
                    raise self._fail(
                        entry,
                        "a link to a directory is in its place",
                        "use --follow-dirs to stage through it",
                    )
            if mode and not stat.S_ISDIR(mode):
                self._clear(here, name, entry)
                mode = 0
            real = here.path + b"/" + name if here.path else name
            fd = open_dir(name, here.fd) if mode else self._mkdir(here, name)
            self._make_room(path)
            self._dirs[path] = child = Folder(real, fd)
            here, name = self._place(entry)
        elif child.path != (here.path + b"/" + name if here.path else name):
            return  # reached through a link that stays
        self._attributes(child, entry, parent=here)
        self._times[child.path] = entry.mtime
        self.implied.discard(child.path)

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
        if self._file_model:
            text = encoded(encode_text, entry, self._label)
        else:
            pairs = encoded(encode_xattrs, entry, self._label)
        direct, aside = self._split(entry) if entry.xattrs else ([], [])
        fd = self._create(here, name, entry)
        try:
            if stream is not None:
                start = stream.region(entry.size) if entry.sparse is None else -1
                if start >= 0:
                    self._copy_beside(fd, stream, start, entry)
                else:
                    self._content(fd, entry, stream)
            elif entry.target:
                write_all(fd, self._target(entry))
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

    def _stamp(self, fd: int, mtime: int, entry: Entry) -> None:
        try:
            os.utime(fd, ns=(mtime, mtime))
        except OverflowError:
            raise self._fail(entry, "its time is out of range") from None

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
        for entry in self._later:
            if not self._link(entry):
                raise self._fail(
                    entry, f"a hard link to {os.fsdecode(entry.link or b'')}, which is not there"
                )
        for path in sorted(self._times, reverse=True):
            entry = Entry(path, _IMPLICIT)
            try:
                self._stamp(self._dir(path, entry, create=False).fd, self._times[path], entry)
            except KeyError:
                raise TreeError(f"{entry.shown}: it went away while it was staged") from None

    def stamp_root(self) -> None:
        """Sets the root's time once more, after the mark in it is gone."""
        if b"" in self._times:
            self._stamp(self._root.fd, self._times[b""], Entry(b"", _IMPLICIT))

    def close(self) -> None:
        self._pump.close()
        self._close_all()
