"""stage: an archive or a host folder becomes a virtfs tree. collect: a tree becomes an archive."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from guestctl import acl
from guestctl.archive import Reader, open_archive
from guestctl.entry import Entry, Limits, clean_path
from guestctl.errors import ArchiveError, TreeError, UsageError
from guestctl.hostdir import HostDir
from guestctl.pack import Sink, open_sink
from guestctl.tarfmt import END, encode_entry, pad, sparse_map_text
from guestctl.tree import (
    State,
    check_model,
    clear_state,
    detect_model,
    hold_tree,
    is_partial,
    open_tree,
    read_state,
    remove_contents,
    tree_state,
    write_state,
)
from guestctl.treecheck import Problem, examine
from guestctl.treereader import TreeReader
from guestctl.treewriter import TreeWriter
from guestctl.vmeta import MAPPED_FILE, META_DIR, ROOT_FILE

__all__ = [
    "CollectReport",
    "Limits",
    "Problem",
    "StageReport",
    "check",
    "collect",
    "is_partial",
    "list_tree",
    "repair",
    "stage",
    "tree_state",
]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Progress = Callable[[int, int], None]  # entries and bytes so far

_WARNINGS = 1000  # more are counted, not kept


@dataclass
class Warnings:
    """A bounded list of one-line warnings, each naming its entry."""

    lines: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, line: str) -> None:
        if len(self.lines) < _WARNINGS:
            self.lines.append(line)
        else:
            self.more += 1

    def all(self) -> tuple[str, ...]:
        tail = [f"and {self.more} more warnings"] if self.more else []
        return (*self.lines, *tail)


@dataclass(frozen=True)
class StageReport:
    """What was staged: entries (all members), bytes (of files' content), warnings."""

    entries: int
    bytes: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class CollectReport:
    """What was collected: entries, bytes (of the archive before compression), warnings."""

    entries: int
    bytes: int
    warnings: tuple[str, ...] = ()


def _into(into: Path | None) -> bytes:
    """Normalises a path in a tree; an absolute one counts from the tree's root."""
    raw = b"" if into is None else os.fsencode(into).strip(b"/")
    try:
        return clean_path(raw) if raw else b""
    except ValueError as error:
        raise UsageError(f"{os.fsdecode(raw)}: {error}") from None


# stage


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
    is that of the tree, and mapped-file for a new one. `follow_dirs` lets entries go through links
    to directories inside the tree. `link` is reserved.

    :raise ArchiveError: the archive is broken or hostile; the tree is then marked as partial, and
        neither `collect` nor a guest takes it until it is staged anew.
    :raise TreeError: the tree cannot take it, or is in use.
    """
    if link:
        raise UsageError("stage with link=True is not there yet", hint="stage without it copies")
    base = _into(into)
    where = os.fsencode(tree)
    _make_tree(where)
    warnings = Warnings()
    with (
        _open_source(source) as (handle, name),
        open_tree(where) as root,
        hold_tree(root, exclusive=True),
    ):
        model = _model_for(root, where, security_model)
        before = read_state(root)
        mark = _mark(root, before, base, name)
        _write_mark(root, model, mark, where)
        writer = TreeWriter(
            root, model, label=name, into=base, follow_dirs=follow_dirs, warn=warnings.add
        )
        try:
            with _reading(handle, name, limits, exclude_vcs) as reader:
                entries, size = _copy_in(reader, writer, limits, mark, progress)
            writer.finish()
            _write_mark(root, model, State(aside=before.aside or writer.aside), where)
            writer.stamp_root()
        except BaseException:
            if not (writer.begun or mark.fresh or before.partial):
                _write_mark(root, model, before, where)  # nothing was touched
            raise
        finally:
            writer.close()
    for line in reader.warnings:
        warnings.add(line)
    return StageReport(entries, size, warnings.all())


def _make_tree(where: bytes) -> None:
    try:
        parent = os.path.dirname(os.path.abspath(where))
        os.makedirs(parent, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(where, 0o700)
            os.chmod(where, 0o700)  # whatever the umask
    except OSError as error:
        raise TreeError(f"{os.fsdecode(where)}: {error.strerror}") from error


def _write_mark(root: int, model: str, state: State, where: bytes) -> None:
    try:
        if state == State():
            clear_state(root, model)
        else:
            write_state(root, model, state)
    except OSError as error:
        raise TreeError(
            f"{os.fsdecode(where)}: cannot hold {model} metadata: {error.strerror}"
        ) from error


def _model_for(root: int, where: bytes, wanted: str | None) -> str:
    if wanted is not None:
        check_model(wanted)
    found = detect_model(root)
    if found and wanted and found != wanted:
        raise TreeError(
            f"{os.fsdecode(where)}: it is a {found} tree, not a {wanted} one",
            hint="a tree can be of one security model only",
        )
    return wanted or found or MAPPED_FILE


def _mark(root: int, before: State, base: bytes, name: str) -> State:
    """Decides how a stage begins; cleans up after one that did not end."""
    source = os.fsencode(name)
    fresh = _is_empty(root, base)
    if before.partial:
        same = before.into == base
        if same and before.fresh:
            _empty(root, base)
            fresh = True
        elif not (same and before.source == source):
            raise TreeError(
                f"the tree is partly staged, from {os.fsdecode(before.source)}",
                hint="stage that again to the same place, or begin with a new tree",
            )
    return State(partial=True, aside=before.aside, fresh=fresh, source=source, into=base)


def _folder(root: int, base: bytes) -> int:
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    for name in base.split(b"/") if base else ():
        try:
            below = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
            )
        except OSError:
            return -1
        finally:
            os.close(fd)
        fd = below
    return fd


def _is_empty(root: int, base: bytes) -> bool:
    fd = _folder(root, base)
    if fd < 0:
        return True
    try:
        names = {os.fsencode(name) for name in os.listdir(fd)}
    finally:
        os.close(fd)
    return not names - {META_DIR, ROOT_FILE}


def _empty(root: int, base: bytes) -> None:
    fd = _folder(root, base)
    if fd >= 0:
        try:
            # The mark lies in the root's metadata folder and has to stay until it is written anew.
            remove_contents(fd, keep=META_DIR if not base else None)
        finally:
            os.close(fd)


def _copy_in(
    reader: Reader,
    writer: TreeWriter,
    limits: Limits,
    mark: State,
    progress: Progress | None,
) -> tuple[int, int]:
    entries = size = 0
    deepest = limits.depth - (mark.into.count(b"/") + 1 if mark.into else 0)
    for entry in reader:
        if not entries:
            writer.begin(entry.mtime, fresh=mark.fresh)
        entries += 1
        size += entry.size
        if entries > limits.entries:
            raise _over(reader, entry, f"more than {limits.entries} entries")
        if size > limits.bytes:
            raise _over(reader, entry, f"more than {limits.bytes} bytes")
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


# collect


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
    with open_tree(tree) as root, hold_tree(root):
        state = read_state(root)
        if state.partial:
            raise TreeError(
                f"{os.fsdecode(tree)}: it is partly staged"
                + (f", from {os.fsdecode(state.source)}" if state.source else ""),
                hint="stage it anew first",
            )
        model = security_model or detect_model(root) or MAPPED_FILE
        reader = TreeReader(root, model, warn=warnings.add, aside=state.aside, owner=owner)
        with open_sink(out, os.cpu_count() or 1) as sink:
            clamp = None if mtime is None else mtime * 10**9
            entries = _copy_out(reader, sink, _into(path), clamp, warnings, progress)
    return CollectReport(entries, sink.size, warnings.all())


def _copy_out(
    reader: TreeReader,
    sink: Sink,
    path: bytes,
    clamp: int | None,
    warnings: Warnings,
    progress: Progress | None,
) -> int:
    entries = 0
    for entry, fd in reader.walk(path):
        if entry.mode & 0o170000 == stat.S_IFSOCK:
            warnings.add(f"{entry.shown}: a socket: left out, tar has none")
            continue
        if clamp is not None and entry.mtime > clamp:
            entry.mtime = clamp
        extra = _extra(entry, warnings) if entry.xattrs and entry.link is None else None
        if fd < 0:
            sink.write(encode_entry(entry, payload=0, extra=extra))
        else:
            _file_out(sink, entry, fd, extra)
        entries += 1
        if progress is not None:
            progress(entries, sink.size)
    sink.write(END)
    return entries


def _file_out(sink: Sink, entry: Entry, fd: int, extra: dict[bytes, bytes] | None) -> None:
    regions = entry.sparse
    if regions is None:
        size = entry.size
        sink.write(encode_entry(entry, payload=size, extra=extra))
        if size:
            sink.copy(fd, 0, size, entry.shown)
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
            sink.copy(fd, offset, length, entry.shown)
    if padding := pad(size):
        sink.write(bytes(padding))


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


# list, check, repair


def list_tree(
    tree: Path, *, path: Path | None = None, security_model: str | None = None
) -> Iterator[Entry]:
    """Yields the entries of a tree as the guest sees them, sorted, parents first."""
    with open_tree(tree) as root:
        state = read_state(root)
        model = security_model or detect_model(root) or MAPPED_FILE
        reader = TreeReader(root, model, warn=lambda _line: None, aside=state.aside, content=False)
        for entry, _ in reader.walk(_into(path)):
            yield entry


def check(tree: Path, *, security_model: str | None = None) -> tuple[Problem, ...]:
    """Returns what in a tree breaks guests or builds, each with its path and consequence."""
    with open_tree(tree) as root, hold_tree(root):
        return _examined(root, security_model, mend=False)


def repair(tree: Path, *, security_model: str | None = None) -> tuple[Problem, ...]:
    """Mends what `check` finds, and returns that: `mended` says what was done with each.

    :raise TreeError: the tree is in use, or of both security models.
    """
    with open_tree(tree) as root, hold_tree(root, exclusive=True):
        return _examined(root, security_model, mend=True)


def _examined(root: int, wanted: str | None, *, mend: bool) -> tuple[Problem, ...]:
    try:
        model = wanted or detect_model(root) or MAPPED_FILE
    except TreeError as error:
        if mend:
            raise
        return (Problem(b"", "mixed", str(error)),)
    return tuple(examine(root, model, mend=mend))
