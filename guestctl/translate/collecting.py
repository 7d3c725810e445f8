"""collect: a virtfs tree becomes an archive."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from guestctl import acl
from guestctl.archive.pack import Sink, open_sink
from guestctl.archive.paxout import END, encode_entry, sparse_map_text
from guestctl.archive.tarfmt import BLOCK, pad
from guestctl.entry import Entry
from guestctl.errors import TreeError
from guestctl.translate.report import Path, Progress, Warnings, clean_subdir, told
from guestctl.tree.dirt import why_dirty
from guestctl.tree.reader import Plain, Several, TreeReader
from guestctl.tree.scout import Scout
from guestctl.tree.state import check_model, detect_model, hold_tree, open_tree, read_state
from guestctl.vmeta import MAPPED_FILE

__all__ = ["CollectReport", "collect"]

_PADDING = bytes(BLOCK)


@dataclass(frozen=True)
class CollectReport:
    """What was collected: entries, bytes (of the archive before compression), warnings."""

    entries: int
    bytes: int
    warnings: tuple[str, ...] = ()


def collect(
    tree: Path,
    out: Path | BinaryIO,
    *,
    path: Path | None = None,
    mtime: int | None = None,
    security_model: str | None = None,
    progress: Progress | None = None,
    owner: tuple[int, int] = (0, 0),
) -> CollectReport:
    """Packs the virtfs tree `tree`, or the folder `path` of it, as a pax tar.

    `out` is a path (.tar, .tar.gz, .tar.xz or .tar.zst) that appears only when whole, or an open
    binary file that gets a plain tar. Times later than `mtime` (seconds) become `mtime`. `owner` is
    for entries whose metadata names none. The same tree gives the same bytes.

    :raise TreeError: the tree is broken, partly staged, or in use by a guest.
    """
    if security_model is not None:
        check_model(security_model)
    warnings = Warnings()
    with told(tree), open_tree(tree) as root, hold_tree(root, name=os.fsdecode(tree)):
        state = read_state(root)
        if state.partial:
            raise TreeError(
                f"{os.fsdecode(tree)}: it is partly staged"
                + (f", from {os.fsdecode(state.source)}" if state.source else ""),
                hint="stage it anew first",
            )
        if state.dirty:
            warnings.add(why_dirty(state))
        model = security_model or detect_model(root, os.fsdecode(tree)) or MAPPED_FILE
        reader = TreeReader(root, model, warn=warnings.add, aside=state.aside, owner=owner)
        with open_sink(out, os.cpu_count() or 1, tree=root) as sink:
            clamp = None if mtime is None else mtime * 10**9
            scout = None
            if model == MAPPED_FILE:
                scout = Scout(root, aside=state.aside, clamp=clamp, settle=sink.settle)
            try:
                found = reader.members(clean_subdir(path), scout)
                entries = _copy_out(found, sink, clamp, warnings, progress)
            finally:
                if scout is not None:
                    scout.close()
    return CollectReport(entries, sink.size, warnings.all())


def _copy_out(
    found: Iterator[tuple[Entry | Plain | Several, int]],
    sink: Sink,
    clamp: int | None,
    warnings: Warnings,
    progress: Progress | None,
) -> int:
    entries = 0
    for entry, fd in found:
        if isinstance(entry, Several):
            entries += entry.count
            sink.lend(entry.content)
            if progress is not None:
                progress(entries, sink.size)
            continue
        entries += 1
        if progress is not None:
            progress(entries, sink.size)
        if isinstance(entry, Plain):
            sink.write(entry.header)
            if entry.size:
                sink.copy(fd, 0, entry.size, entry.path)
                sink.write(_PADDING[: -entry.size % BLOCK])
            continue
        if entry.mode & 0o170000 == stat.S_IFSOCK:
            warnings.add(f"{entry.shown}: a socket: left out, tar has none")
            entries -= 1
            continue
        if clamp is not None and entry.mtime > clamp:
            entry.mtime = clamp
        extra = _extra(entry, warnings) if entry.xattrs and entry.link is None else None
        if fd < 0:
            sink.write(encode_entry(entry, payload=0, extra=extra))
        else:
            _file_out(sink, entry, fd, extra)
    sink.write(END)
    return entries


def _file_out(sink: Sink, entry: Entry, fd: int, extra: dict[bytes, bytes] | None) -> None:
    regions = entry.sparse
    if regions is None:
        size = entry.size
        sink.write(encode_entry(entry, payload=size, extra=extra))
        if size:
            sink.copy(fd, 0, size, entry.path)
    else:
        # GNU's format asks for an end: an empty region where the file ends in a hole.
        listed = (
            regions
            if regions and sum(regions[-1]) == entry.size
            else [
                *regions,
                (entry.size, 0),
            ]
        )
        head = sparse_map_text(listed)
        size = len(head) + sum(length for _, length in regions)
        sink.write(encode_entry(entry, payload=size, extra=extra) + head)
        for offset, length in regions:
            sink.copy(fd, offset, length, entry.path)
    sink.write(_PADDING[: pad(size)])


def _extra(entry: Entry, warnings: Warnings) -> dict[bytes, bytes]:
    extra: dict[bytes, bytes] = {}
    for name, value in entry.xattrs.items():
        if name in (b"system.posix_acl_access", b"system.posix_acl_default"):
            try:
                extra[b"SCHILY.acl." + name[17:]] = acl.decode(value)
            except ValueError as error:
                warnings.add(f"{entry.shown}: {error}: left out")
        else:
            key = name.replace(b"%", b"%25").replace(b"=", b"%3D")
            extra[b"SCHILY.xattr." + key] = value
    return extra
