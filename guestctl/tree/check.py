"""Finds what in a virtfs tree breaks guests or builds, and mends it where that can be done."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from guestctl.entry import TARGET_MAX, type_name
from guestctl.errors import TreeError
from guestctl.tree.dirt import cleaned
from guestctl.tree.judgement import fields_of, judge, text_of
from guestctl.tree.mending import (
    convert,
    discard,
    drop_xattrs,
    empty,
    grant,
    mapped_xattrs,
    remove,
    rewrite,
    share,
)
from guestctl.tree.problems import Problem
from guestctl.tree.state import OPEN_DIR, OPEN_FILE, open_dir, read_small, read_state
from guestctl.vmeta import (
    MAPPED_FILE,
    MAPPED_XATTR,
    META_DIR,
    META_MAX,
    RESERVED,
    ROOT_FILE,
    STATE_NAME,
    VIRTFS_PREFIX,
    Meta,
    decode_text,
    decode_xattrs,
    encode_xattrs,
)

__all__ = ["examine"]

_Ident = tuple[int, int]


def examine(root: int, model: str, *, mend: bool = False) -> Iterator[Problem]:
    """Yields the problems of the tree at `root`, and with `mend` deals with each as it is found.

    :raise TreeError: something there cannot be looked at.
    """
    examiner = _Examiner(root, model, mend)
    try:
        yield from examiner.run()
    except (OSError, ValueError) as error:  # whoever changes the tree meanwhile
        what = error.strerror if isinstance(error, OSError) else str(error)
        raise TreeError(f"{os.fsdecode(examiner.at) or '.'}: {what}") from error


class _Examiner:
    def __init__(self, root: int, model: str, mend: bool) -> None:
        self.at = b""  # what is looked at, for messages
        self._root = root
        self._file_model = model == MAPPED_FILE
        self._mend = mend
        # Links into the cache cannot be written to; links of our own making can.
        self._file_access = 0o400 if read_state(root).links else 0o600
        # By device and inode: of a file of several names, the first with metadata, and which that
        # is; its names without; and of metadata of several names, whose it was when it was met.
        self._links: dict[_Ident, tuple[bytes, _Ident]] = {}
        self._bare: dict[_Ident, list[bytes]] = {}
        self._owners: dict[_Ident, tuple[bytes, _Ident]] = {}

    def run(self) -> Iterator[Problem]:
        state = read_state(self._root)
        if state.partial:
            yield Problem(b"", "partial-stage", "stage it anew")
        yield from self._root_itself()
        todo = [b""]
        while todo:
            self.at = path = todo.pop()
            folders: list[bytes] = []
            with self._opened(path) as fd:
                yield from self._folder(path, fd, folders)
            todo += sorted(folders, reverse=True)
        yield from self._without()
        if state.dirty:
            user = state.dirty.decode(errors="backslashreplace")
            yield self._report(b"", "dirty", user, self._clean)

    def _clean(self) -> None:
        """Whoever mends a tree has been told of its dirt, and takes it as it is."""
        path = Path(f"/proc/self/fd/{self._root}")
        cleaned(path, MAPPED_FILE if self._file_model else MAPPED_XATTR)

    @contextlib.contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        fd = os.open(b".", OPEN_DIR, dir_fd=self._root)
        try:
            for name in path.split(b"/") if path else ():
                below = open_dir(name, fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _report(self, path: bytes, kind: str, detail: str, act: Callable[[], object]) -> Problem:
        """A problem, dealt with by `act` if that is wanted and can be done."""
        problem = Problem(path, kind, detail)
        if not self._mend:
            return problem
        try:
            act()
        except OSError as error:
            return replace(problem, detail=f"{detail}, not mended: {error.strerror}".lstrip(", "))
        return replace(problem, mended=True)

    def _root_itself(self) -> Iterator[Problem]:
        if self._file_model:
            yield from self._other_model(b"", self._root, b".")
            yield from self._one_text(b"", self._root, ROOT_FILE, os.fstat(self._root), True)
        else:
            yield from self._one_xattr(b"", self._root, os.fstat(self._root))

    # One folder

    def _folder(self, path: bytes, fd: int, folders: list[bytes]) -> Iterator[Problem]:
        names = sorted(os.fsencode(name) for name in os.listdir(fd))
        present = set(names) - RESERVED
        meta = -1
        if META_DIR in names and self._file_model:
            try:
                meta = open_dir(META_DIR, fd)
            except OSError as error:
                yield Problem(path, "unsafe-metadata", f"{META_DIR.decode()}: {error.strerror}")
        elif META_DIR in names:
            yield self._report(path, "mixed", META_DIR.decode(), lambda: discard(META_DIR, fd))
        if ROOT_FILE in names and (path or not self._file_model):
            yield self._report(path, "stray", ROOT_FILE.decode(), lambda: remove(ROOT_FILE, fd))
        try:
            if meta >= 0:
                yield from self._orphans(path, fd, meta, present)
            for name in sorted(present):
                at = path + b"/" + name if path else name
                yield from self._entry(at, name, fd, meta, folders)
                if meta < 0 and self._mend and self._file_model:
                    with contextlib.suppress(OSError):
                        meta = open_dir(META_DIR, fd)
        finally:
            if meta >= 0:
                os.close(meta)

    def _orphans(self, path: bytes, fd: int, meta: int, present: set[bytes]) -> Iterator[Problem]:
        held = sorted(os.fsencode(name) for name in os.listdir(meta))
        for name in held:
            if name in present or (name == STATE_NAME and not path):
                continue
            at = path + b"/" + name if path else name
            yield self._report(at, "orphan", "", lambda name=name: remove(name, meta))  # type: ignore[misc]
        if path and not present:
            yield self._report(path, "empty-metadata", "", lambda: os.rmdir(META_DIR, dir_fd=fd))

    def _entry(
        self, at: bytes, name: bytes, fd: int, meta: int, folders: list[bytes]
    ) -> Iterator[Problem]:
        self.at = at
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        form = stat.S_IFMT(info.st_mode)
        if form not in (stat.S_IFREG, stat.S_IFDIR):
            kind = "host-symlink" if form == stat.S_IFLNK else "host-special"
            act = lambda: convert(name, fd, info, file_model=self._file_model)  # noqa: E731
            yield self._report(at, kind, type_name(form), act)
            return
        want = 0o700 if form == stat.S_IFDIR else self._file_access
        if info.st_mode & want != want:
            yield self._report(
                at, "host-mode", f"{stat.S_IMODE(info.st_mode):04o}", lambda: grant(name, fd, want)
            )
        if form == stat.S_IFDIR:
            folders.append(at)
        if self._file_model:
            yield from self._other_model(at, fd, name)
            yield from self._one_text(at, fd, name, info, False, meta)
        else:
            try:
                child = os.open(name, OPEN_FILE, dir_fd=fd)
            except OSError as error:
                yield Problem(at, "host-mode", error.strerror or "")
                return
            try:
                yield from self._one_xattr(at, child, info)
            finally:
                os.close(child)

    def _other_model(self, at: bytes, fd: int, name: bytes) -> Iterator[Problem]:
        """What mapped-xattr would believe, in a mapped-file tree."""
        if held := mapped_xattrs(fd, name):
            shown = ", ".join(map(os.fsdecode, held))
            yield self._report(at, "mixed", shown, lambda: drop_xattrs(fd, name, held))

    # One entry's metadata

    def _one_text(
        self,
        at: bytes,
        fd: int,
        name: bytes,
        info: os.stat_result,
        is_root: bool,
        meta: int = -1,
    ) -> Iterator[Problem]:
        where = fd if is_root else meta
        text: bytes | None = None
        try:
            text = read_small(name, where, META_MAX) if where >= 0 else None
        except ValueError as error:
            yield self._report(at, "unsafe-metadata", str(error), lambda: remove(name, where))
            if not self._mend:
                return
        except OSError as error:
            yield Problem(at, "unsafe-metadata", error.strerror or "")
            return
        if text is not None:
            yield from self._of_another(at, fd, name, info, where, text)
            if self._mend:
                text = read_small(name, where, META_MAX)
        if info.st_nlink > 1 and stat.S_ISREG(info.st_mode):
            found = yield from self._shared(at, fd, name, info, meta, text)
            if found:
                return
        known = decode_text(text) if text else Meta()
        kind, detail, right = judge(known, info.st_mode, bool(text))
        if not kind and text != text_of(right):
            kind = "malformed"
        if kind:
            yield self._report(
                at, kind, detail, lambda: rewrite(fd, name, text_of(right), is_root=is_root)
            )
        yield from self._payload(at, fd, name, info, right)

    def _one_xattr(self, at: bytes, fd: int, info: os.stat_result) -> Iterator[Problem]:
        attrs = {}
        for shown in os.listxattr(fd):
            if os.fsencode(shown).startswith(VIRTFS_PREFIX):
                attrs[os.fsencode(shown)] = os.getxattr(fd, shown)
        known = decode_xattrs(attrs)
        kind, detail, right = judge(known, info.st_mode, known != Meta())

        def act() -> None:
            for name, value in encode_xattrs(*fields_of(right)):
                os.setxattr(fd, name, value)

        if kind:
            yield self._report(at, kind, detail, act)
        yield from self._payload(at, fd, b"", info, right)

    def _payload(
        self, at: bytes, fd: int, name: bytes, info: os.stat_result, right: Meta
    ) -> Iterator[Problem]:
        form = stat.S_IFMT(right.mode or 0)
        if form == stat.S_IFLNK:
            data = b""
            if info.st_size <= TARGET_MAX:
                data = (read_small(name, fd, TARGET_MAX) if name else os.pread(fd, 4096, 0)) or b""
            if not data or b"\0" in data:
                yield Problem(at, "bad-target", f"{info.st_size} bytes")
        elif form not in (stat.S_IFREG, stat.S_IFDIR) and info.st_size:
            yield self._report(at, "content", f"{info.st_size} bytes", lambda: empty(fd, name))

    def _of_another(
        self, at: bytes, fd: int, name: bytes, info: os.stat_result, where: int, text: bytes
    ) -> Iterator[Problem]:
        """Metadata that another entry has too, though they are not names of one file."""
        held = os.stat(name, dir_fd=where, follow_symlinks=False)
        if held.st_nlink < 2:
            return
        ident = info.st_dev, info.st_ino
        first, whose = self._owners.setdefault((held.st_dev, held.st_ino), (at, ident))
        if whose == ident:
            return
        if ident in self._links:
            act = partial(self._share, self._links[ident][0], fd, name, where)
        else:
            right = text_of(judge(decode_text(text), info.st_mode, bool(text))[2])
            act = partial(rewrite, fd, name, right, is_root=not at, anew=True)
        yield self._report(at, "shared-metadata", f"that of {os.fsdecode(first) or '.'}", act)

    def _shared(
        self,
        at: bytes,
        fd: int,
        name: bytes,
        info: os.stat_result,
        meta: int,
        text: bytes | None,
    ) -> Generator[Problem, None, bool]:
        """Looks at a name of several; returns whether it is done with."""
        ident = info.st_dev, info.st_ino
        mine = (0, 0)
        if text is not None:
            held = os.stat(name, dir_fd=meta, follow_symlinks=False)
            mine = held.st_dev, held.st_ino
        known = self._links.get(ident)
        if text is None:
            self._bare.setdefault(ident, []).append(at)  # another name may know better
            return True
        if known is None:
            self._links[ident] = at, mine
            return False
        if mine != known[1]:
            yield self._unshared(at, fd, name, meta, known[0])
        return True

    def _unshared(self, at: bytes, fd: int, name: bytes, meta: int, first: bytes) -> Problem:
        act = partial(self._share, first, fd, name, meta)
        return self._report(at, "unshared-links", f"a hard link to {os.fsdecode(first)}", act)

    def _share(self, first: bytes, fd: int, name: bytes, meta: int) -> None:
        """Gives `name` the metadata of `first`, another name of the same file."""
        parent, _, old = first.rpartition(b"/")
        with self._opened(parent) as there:
            share(there, old, fd, name, meta)

    def _without(self) -> Iterator[Problem]:
        """The names of files of several names that have no metadata of their own."""
        for ident, paths in self._bare.items():
            first = self._links[ident][0] if ident in self._links else b""
            for at in paths:
                self.at = at
                parent, _, name = at.rpartition(b"/")
                with self._opened(parent) as fd:
                    if first:
                        yield self._unshared(at, fd, name, -1, first)
                        continue
                    first = at
                    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    text = text_of(judge(Meta(), info.st_mode, False)[2])
                    act = partial(rewrite, fd, name, text, is_root=False)
                    yield self._report(at, "missing", "", act)
