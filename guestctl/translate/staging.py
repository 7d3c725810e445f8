"""stage: an archive or a host folder becomes a virtfs tree."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from guestctl.archive.hostdir import HostDir
from guestctl.archive.reader import Reader, open_archive
from guestctl.entry import Entry, Limits
from guestctl.errors import ArchiveError, TreeError
from guestctl.translate.linking import linkable, unexported
from guestctl.translate.marking import first_mark, is_new, make_tree, model_for, write_mark
from guestctl.translate.report import Path, Progress, Warnings, clean_subdir, told
from guestctl.translate.unpacked import Artifact, Translation
from guestctl.tree.dirt import why_dirty
from guestctl.tree.filler import Filler
from guestctl.tree.linked import LinkedWriter, Unlinkable
from guestctl.tree.state import (
    State,
    hold_tree,
    open_tree,
    read_state,
)
from guestctl.tree.writer import TreeWriter

__all__ = ["StageReport", "stage"]


@dataclass(frozen=True)
class StageReport:
    """What was staged: entries (all members), bytes (of files' content), warnings."""

    entries: int
    bytes: int
    warnings: tuple[str, ...] = ()


@contextlib.contextmanager
def _open_source(source: Path | BinaryIO) -> Iterator[tuple[int | BinaryIO, str]]:
    """Yields a descriptor or file object, and what to call it."""
    if not isinstance(source, (str, bytes, os.PathLike)):
        name = getattr(source, "name", "")
        known = isinstance(name, str) and name not in ("", "<stdin>")
        yield source, name if known else "standard input" if name else "the archive"
        return
    shown = os.fsdecode(source)
    try:
        fd = os.open(os.fsencode(source), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ArchiveError(f"{shown}: {error.strerror}") from error
    try:
        yield fd, shown
    finally:
        os.close(fd)


@contextlib.contextmanager
def _reading(
    handle: int | BinaryIO, name: str, limits: Limits, exclude_vcs: bool
) -> Iterator[Reader]:
    if isinstance(handle, int) and stat.S_ISDIR(os.fstat(handle).st_mode):
        yield HostDir(handle, name, exclude_vcs=exclude_vcs)
    else:
        with open_archive(handle, name, ratio=limits.ratio) as reader:
            yield reader


def stage(
    source: Path | BinaryIO,
    tree: Path,
    *,
    into: Path | None = None,
    follow_dirs: bool = False,
    link: bool = False,
    security_model: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
    exclude_vcs: bool = False,
) -> StageReport:
    """Unpacks `source` into the virtfs tree `tree` (made if missing), below `into`.

    `source` is the path of an archive (tar, cpio, deb; any compression) or of a folder of host
    files, which become root's, or an open binary file. Entries that exist are replaced. The model
    is that of the tree or of the share, and mapped-file for a new folder. `follow_dirs` lets
    entries go through links
    to directories inside the tree. `link` is for trees that a guest gets read-only, as its base:
    an archive is unpacked into the cache once, and the tree gets hard links to that; where this
    cannot be, it is copied, with a warning.

    :raise ArchiveError: the archive is broken or hostile; the tree is then marked as partial, and
        neither `collect` nor a guest takes it until it is staged anew.
    :raise TreeError: the tree cannot take it, or is in use.
    """
    base = clean_subdir(into)
    where = os.fsencode(tree)
    warnings = Warnings()
    with contextlib.ExitStack() as stack:
        handle, name = stack.enter_context(_open_source(source))
        make_tree(where)
        stack.enter_context(told(tree))
        root = stack.enter_context(open_tree(where))
        lock = stack.enter_context(hold_tree(root, exclusive=True, name=os.fsdecode(where)))
        model = model_for(root, where, security_model or getattr(tree, "security_model", None))
        before, new = read_state(root), is_new(root)
        mark = first_mark(root, before, base, name)
        if mark.dirty:
            warnings.add(why_dirty(mark))
        unpack = functools.partial(_unpack, handle, name, limits, exclude_vcs, progress)
        artifact = None
        if link:
            stack.enter_context(unexported(tree, where))
            artifact = stack.enter_context(
                linkable(
                    handle,
                    tree,
                    root,
                    Translation(model, follow_dirs, limits),
                    mark.links,
                    functools.partial(unpack, State(fresh=True)),
                    warnings.add,
                )
            )
        if artifact is not None:
            mark = replace(mark, links=(*mark.links, artifact.token))
        write_mark(root, model, mark, where)
        writer = LinkedWriter(
            root,
            model,
            label=name,
            into=base,
            follow_dirs=follow_dirs,
            warn=warnings.add,
            filler=_filler(handle, lock, name),
        )
        try:
            entries, size = _put_in(
                artifact, unpack, writer, mark, _deepest(limits, mark), warnings, progress
            )
            writer.finish()
            ready = State(aside=before.aside or writer.aside, links=mark.links, dirty=mark.dirty)
            write_mark(root, model, ready, where)
            writer.stamp_root()
        except BaseException:
            if not (writer.begun or new or before.partial):
                write_mark(root, model, before, where)  # nothing was touched
            raise
        finally:
            writer.close()
    return StageReport(entries, size, warnings.all())


def _put_in(
    artifact: Artifact | None,
    unpack: Callable[[State, TreeWriter], tuple[int, int, list[str]]],
    writer: LinkedWriter,
    mark: State,
    deepest: int,
    warnings: Warnings,
    progress: Progress | None,
) -> tuple[int, int]:
    """Links the artifact, or unpacks the source; returns entries and bytes."""
    if artifact is not None:
        try:
            return artifact.link_into(
                writer, warnings, fresh=mark.fresh, deepest=deepest, progress=progress
            )
        except Unlinkable as error:
            warnings.add(f"copied, not linked: {error}")
    entries, size, told = unpack(mark, writer)
    for line in told:
        warnings.add(line)
    return entries, size


def _unpack(
    handle: int | BinaryIO,
    name: str,
    limits: Limits,
    exclude_vcs: bool,
    progress: Progress | None,
    mark: State,
    writer: TreeWriter,
) -> tuple[int, int, list[str]]:
    """Unpacks the source through `writer`; returns entries, bytes, and the reader's warnings."""
    if isinstance(handle, int) and stat.S_ISREG(os.fstat(handle).st_mode):
        os.lseek(handle, 0, os.SEEK_SET)
    with _reading(handle, name, limits, exclude_vcs) as reader:
        entries, size = _copy_in(reader, writer, limits, mark, progress)
    return entries, size, reader.warnings


def _filler(handle: int | BinaryIO, lock: int, name: str) -> Filler | None:
    """A second process for the small files of an archive that it can read on its own."""
    if not isinstance(handle, int) or not stat.S_ISREG(os.fstat(handle).st_mode):
        return None
    return Filler(handle, lock, label=name)


def _copy_in(
    reader: Reader,
    writer: TreeWriter,
    limits: Limits,
    mark: State,
    progress: Progress | None,
) -> tuple[int, int]:
    entries = size = 0
    deepest = _deepest(limits, mark)
    most, largest = limits.entries, limits.bytes
    for entry in reader:
        if not entries:
            writer.begin(entry.mtime, fresh=mark.fresh)
        entries += 1
        size += entry.size
        if entries > most:
            raise _over(reader, entry, f"more than {most} entries")
        if size > largest:
            raise _over(reader, entry, f"more than {largest} bytes")
        if entry.path.count(b"/") >= deepest:
            raise _over(reader, entry, f"more than {limits.depth} directories deep")
        try:
            _put(reader, writer, entry)
        except OSError as error:
            raise TreeError(
                f"{reader.name}: {entry.shown}: cannot be written: {error.strerror}"
            ) from error
        if progress is not None:
            progress(entries, size)
    if not entries:
        writer.begin(0, fresh=mark.fresh)
    return entries, size


def _deepest(limits: Limits, mark: State) -> int:
    """How many components a path may have below where the stage goes to."""
    return limits.depth - (mark.into.count(b"/") + 1 if mark.into else 0)


def _over(reader: Reader, entry: Entry, what: str) -> ArchiveError:
    return ArchiveError(
        f"{reader.name}: {entry.shown}: {what}",
        hint="a bomb? raise the limit if you trust the archive",
    )


def _put(reader: Reader, writer: TreeWriter, entry: Entry) -> None:
    form = entry.mode & 0o170000
    if entry.link is not None:
        if reader.late_content and reader.left:
            writer.hardlink(entry, reader.stream, reader.left)
            reader.left = 0
        else:
            writer.hardlink(entry)
    elif form == stat.S_IFDIR:
        writer.directory(entry)
    elif form == stat.S_IFREG:
        writer.leaf(entry, reader.stream)
        reader.left = 0
    else:
        writer.leaf(entry)
