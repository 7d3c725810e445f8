"""The folders of a tree that is being written: opened one by one from the root, made if missing.

No name leads out of the tree: each step is one openat that follows nothing. Links to directories
are resolved here, by the text that they have in the tree, and only when that is asked for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from guestctl.entry import TARGET_MAX, Entry, type_name
from guestctl.errors import ArchiveError, TreeError
from guestctl.tree.state import NEW_FILE, open_dir, read_small
from guestctl.vmeta import (
    MAPPED_FILE,
    META_DIR,
    META_MAX,
    MODE_XATTR,
    ROOT_FILE,
    decode_text,
    decode_xattrs,
)

__all__ = ["Folder", "Folders"]

_OPEN_MAX = 192  # folders held open, two descriptors each
_LINKS_MAX = 40


class Folder:
    """A folder of the tree: `path` from the root, and open descriptors."""

    __slots__ = ("fd", "meta", "path")

    def __init__(self, path: bytes, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.meta = -1

    def close(self) -> None:
        os.close(self.fd)
        if self.meta >= 0:
            os.close(self.meta)


class Folders:
    """What TreeWriter stands on; `_adopt` is its part in making a folder that no member names.

    `_await` returns when no other process still owes the file of that name, or any of the folder;
    and whether one did.
    """

    def __init__(self, root: int, model: str, *, label: str, into: bytes, follow: bool) -> None:
        self._file_model = model == MAPPED_FILE
        self._label = label
        self._into = into
        self._follow = follow
        self._root = Folder(b"", os.dup(root))
        self._dirs: dict[bytes, Folder] = {b"": self._root}
        self._exact = self._probe()

    def _adopt(self, child: Folder, parent: Folder, entry: Entry) -> None:
        """Gives a new folder its metadata; it is there for the sake of `entry`."""
        raise NotImplementedError

    def _await(self, path: bytes, name: bytes = b"") -> bool:
        raise NotImplementedError

    def _close_all(self) -> None:
        for known in self._dirs.values():
            known.close()
        self._dirs.clear()

    def _probe(self) -> bool:
        """Whether new files get their mode whole, or the umask takes from it."""
        fd = os.open(ROOT_FILE + b".probe", NEW_FILE, 0o700, dir_fd=self._root.fd)
        try:
            return stat.S_IMODE(os.fstat(fd).st_mode) == 0o700
        finally:
            os.close(fd)
            os.unlink(ROOT_FILE + b".probe", dir_fd=self._root.fd)

    def _fail(self, entry: Entry, what: str, hint: str = "") -> ArchiveError:
        return ArchiveError(f"{self._label}: {entry.shown}: {what}", hint=hint)

    def _full(self, path: bytes) -> bytes:
        if not self._into:
            return path
        return self._into + b"/" + path if path else self._into

    def _dir(self, path: bytes, entry: Entry, *, create: bool = True) -> Folder:
        """Returns the folder at `path`, made if missing; KeyError if missing and not `create`."""
        found = self._dirs.get(path)
        if found is not None:
            return found
        at = path
        while at not in self._dirs:
            at = at.rpartition(b"/")[0]
        here = self._dirs[at]
        for name in path[len(at) :].strip(b"/").split(b"/"):
            at = at + b"/" + name if at else name
            here = self._child(here, name, at, entry, create)
        return here

    def _child(self, here: Folder, name: bytes, at: bytes, entry: Entry, create: bool) -> Folder:
        if self._make_room(at):
            here = self._dirs.get(here.path) or self._dir(here.path, entry, create=False)
        path = here.path + b"/" + name if here.path else name
        try:
            fd = open_dir(name, here.fd)
        except FileNotFoundError:
            if not create:
                raise KeyError(at) from None
            if self._await(here.path, name):
                return self._child(here, name, at, entry, create)
            fd = self._mkdir(here, name)
            self._dirs[at] = child = Folder(path, fd)
            self._adopt(child, here, entry)
            return child
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            if self._link_text(here, name) is not None and self._follow:
                child = self._resolve(here, name, entry)
                self._dirs[at] = copy = Folder(child.path, os.dup(child.fd))
                return copy
            what = self._what(here, name)
            raise self._fail(
                entry,
                f"{os.fsdecode(at)} is a {what}, not a directory",
                "use --follow-dirs to go through links to directories" if what == "symlink" else "",
            ) from None
        self._dirs[at] = child = Folder(path, fd)
        return child

    def _make_room(self, at: bytes) -> bool:
        """Closes all folders but those that lead to `at`, when there are many."""
        if len(self._dirs) < _OPEN_MAX:
            return False
        for path in list(self._dirs):
            if path and not (at + b"/").startswith(path + b"/"):
                self._dirs.pop(path).close()
        return True

    def _mkdir(self, here: Folder, name: bytes) -> int:
        os.mkdir(name, 0o700, dir_fd=here.fd)
        fd = open_dir(name, here.fd)
        if not self._exact:
            os.fchmod(fd, 0o700)
        return fd

    def _meta(self, here: Folder, *, create: bool = True) -> int:
        if here.meta < 0:
            try:
                here.meta = open_dir(META_DIR, here.fd)
            except FileNotFoundError:
                if not create:
                    return -1
                here.meta = self._mkdir(here, META_DIR)
            except NotADirectoryError:
                raise TreeError(
                    f"{os.fsdecode(here.path) or '.'}: its {META_DIR.decode()} is no directory"
                ) from None
        return here.meta

    # What is there already

    def _stored(self, here: Folder, name: bytes) -> int:
        """The mode that the guest sees of an existing entry; 0 if there is none."""
        self._await(here.path, name)
        try:
            info = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
        except FileNotFoundError:
            return 0
        mode = None
        if self._file_model:
            meta = self._meta(here, create=False)
            with contextlib.suppress(ValueError):
                text = read_small(name, meta, META_MAX) if meta >= 0 else None
                mode = decode_text(text).mode if text else None
        elif stat.S_ISREG(info.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here.fd)
            try:
                with contextlib.suppress(OSError):
                    mode = decode_xattrs({MODE_XATTR: os.getxattr(fd, MODE_XATTR)}).mode
            finally:
                os.close(fd)
        if mode is None or not stat.S_ISREG(info.st_mode) or not stat.S_IFMT(mode):
            return info.st_mode
        return mode

    def _what(self, here: Folder, name: bytes) -> str:
        return type_name(self._stored(here, name))

    def _link_text(self, here: Folder, name: bytes) -> bytes | None:
        """The target of the symbolic link of that name, if it is one of the tree's form."""
        if not stat.S_ISLNK(self._stored(here, name)):
            return None
        try:
            return read_small(name, here.fd, TARGET_MAX) or None
        except ValueError:
            return None  # a link of the host: never followed

    def _resolve(self, here: Folder, name: bytes, entry: Entry) -> Folder:
        """Follows a link to a folder inside of what is staged into, as the guest would."""
        todo = [name]
        budget = _LINKS_MAX
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                inside = here.path != self._into and here.path
                up = here.path.rpartition(b"/")[0] if inside else self._into
                here = self._dir(up, entry, create=False)
                continue
            path = here.path + b"/" + part if here.path else part
            try:
                here = self._dirs.get(path) or self._plain(here, part, path)
            except (FileNotFoundError, NotADirectoryError):
                text = self._link_text(here, part)
                budget -= 1
                if text is None or budget < 0:
                    raise self._fail(entry, "a link on its way leads to no directory") from None
                if text.startswith(b"/"):
                    here = self._dir(self._into, entry, create=False)
                todo += reversed(text.split(b"/"))
        return here

    def _plain(self, here: Folder, name: bytes, path: bytes) -> Folder:
        fd = open_dir(name, here.fd)
        self._dirs[path] = child = Folder(path, fd)
        return child
