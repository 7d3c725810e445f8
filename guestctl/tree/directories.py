"""The directories of a tree that is being written: made, given metadata, cleared, and timed."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable

from guestctl.entry import Entry
from guestctl.errors import ArchiveError, TreeError
from guestctl.tree.filler import Filler
from guestctl.tree.folders import Folder, Folders
from guestctl.tree.metadata import Pairs, encoded, set_xattrs, split_xattrs, write_text
from guestctl.tree.state import open_dir
from guestctl.vmeta import (
    ACL_PREFIX,
    ASIDE_PREFIX,
    META_DIR,
    MODE_XATTR,
    ROOT_FILE,
    encode_text,
    encode_xattrs,
)

__all__ = ["Directories"]

_IMPLICIT = stat.S_IFDIR | 0o755


class Directories(Folders):
    """What TreeWriter knows of directories; `warn` takes a line of text."""

    def __init__(
        self,
        root: int,
        model: str,
        *,
        label: str,
        into: bytes,
        follow: bool,
        warn: Callable[[str], None],
        filler: Filler | None,
    ) -> None:
        self.aside = False  # whether anything was kept aside
        self.begun = False  # whether anything was written
        self.began = 0  # the time of what no member names
        self.implied = {b""}  # folders that no member names
        super().__init__(root, model, label=label, into=into, follow=follow)
        self._warn = warn
        self._times: dict[bytes, int] = {}
        self._filler = filler if self._file_model and self._exact else None

    def begin(self, mtime: int, *, fresh: bool) -> None:
        """Makes the folder to stage into, and the root's own metadata where it has none.

        With `fresh`, what no member names gets `mtime`: the time of staging must not show.
        """
        self.began = mtime
        root = Entry(b"", _IMPLICIT)
        if not self._file_model:
            self._attributes(self._root, root, keep=True)
        elif ROOT_FILE not in map(os.fsencode, os.listdir(self._root.fd)):
            self._attributes(self._root, root)
        into = self._dir(self._into, Entry(self._into, _IMPLICIT, mtime=mtime))
        self.begun = True
        if fresh:
            self._times[into.path] = mtime

    def _adopt(self, child: Folder, parent: Folder, entry: Entry) -> None:
        self.begun = True
        self.implied.add(child.path)
        self._times[child.path] = entry.mtime
        self._attributes(child, Entry(child.path, _IMPLICIT), parent=parent)

    def _await(self, path: bytes, name: bytes = b"") -> bool:
        if self._filler is None or not self._filler.owes(path, name):
            return False
        self._filler.settle()
        return True

    def _clear(self, here: Folder, name: bytes, entry: Entry) -> None:
        """Removes what stands at `name`, data and metadata; a folder only if it is empty."""
        self._await(here.path, name)
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
        self._await(path)
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
            if keep and MODE_XATTR in have:
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
            fd = self._made(here, name, entry)
            if fd < 0:
                return  # the link stays, and so do the attributes of where it leads
            real = here.path + b"/" + name if here.path else name
            self._make_room(path)
            self._dirs[path] = child = Folder(real, fd)
            here, name = self._place(entry)
        elif child.path != (here.path + b"/" + name if here.path else name):
            return  # reached through a link that stays
        self._attributes(child, entry, parent=here)
        self._times[child.path] = entry.mtime
        self.implied.discard(child.path)

    def _made(self, here: Folder, name: bytes, entry: Entry) -> int:
        """Opens the folder of that name, made if missing; -1 if a link that leads to one stays."""
        self._await(here.path, name)
        try:
            return self._mkdir(here, name)
        except FileExistsError:
            pass
        mode = self._stored(here, name)
        if stat.S_ISLNK(mode):
            try:
                self._resolve(here, name, entry)
            except ArchiveError:
                # It leads nowhere: the directory takes its place. Looking may have closed this one.
                here, name = self._place(entry)
            else:
                if self._follow:
                    return -1
                raise self._fail(
                    entry,
                    "a link to a directory is in its place",
                    "use --follow-dirs to stage through it",
                )
        if stat.S_ISDIR(mode):
            return open_dir(name, here.fd)
        self._clear(here, name, entry)
        return self._mkdir(here, name)

    def _stamp(self, fd: int, mtime: int, entry: Entry) -> None:
        try:
            os.utime(fd, ns=(mtime, mtime))
        except OverflowError:
            raise self._fail(entry, "its time is out of range") from None

    def _stamp_all(self) -> None:
        """Sets the times of all directories, deepest first."""
        for path in sorted(self._times, reverse=True):
            entry = Entry(path, _IMPLICIT)
            parent, _, name = path.rpartition(b"/")
            try:
                here = self._dirs.get(parent) or self._dir(parent, entry, create=False)
                fd = open_dir(name or b".", here.fd)
            except (FileNotFoundError, KeyError):
                raise TreeError(f"{entry.shown}: it went away while it was staged") from None
            try:
                self._stamp(fd, self._times[path], entry)
            finally:
                os.close(fd)

    def stamp_root(self) -> None:
        """Sets the root's time once more, after the mark in it is gone."""
        if b"" in self._times:
            self._stamp(self._root.fd, self._times[b""], Entry(b"", _IMPLICIT))
