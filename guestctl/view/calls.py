"""What a view shows to a tool, what a call of a tool is, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from guestctl.errors import UsageError

__all__ = ["TOOLCHAIN", "Bind", "Call", "Given", "Limits", "Mount", "Outcome", "Tree", "Written"]

# Where a call finds the toolchain's folder. Nothing that is written below it comes back.
TOOLCHAIN = b"/.tc"


@dataclass(frozen=True)
class Tree:
    """A folder of the host that holds what a guest sees.

    `model` is the security model of a share (`mapped-file`, `mapped-xattr`), whose symbolic links
    are files in disguise, or None for a folder with real links, such as an image's root unpacked.
    `fixed` says that nothing changes it while the view lasts: it is scanned once.
    """

    path: Path
    model: str | None = None
    fixed: bool = False


@dataclass(frozen=True)
class Mount:
    """A part of a tree at a path of the calling process's own root.

    A mount at `/` is needed; the others lie below. `tree` None is an empty folder, for what the
    guest holds elsewhere (a tmpfs). What is written to a read-only mount fails with EROFS.
    """

    tree: str | None
    subpath: bytes
    at: bytes
    readonly: bool = False


@dataclass(frozen=True)
class Bind:
    """A file or folder of the toolchain, shown (read-only, executable) at a path of the guest's.

    So a host's cc1 can stand where the guest's own cc1 is.
    """

    source: bytes  # relative to the toolchain's folder
    at: bytes  # absolute, in the process's root


@dataclass(frozen=True)
class Given:
    """A file of the guest that no tree holds, put into the view before the call.

    It comes back among `Outcome.written` only if the call changes it.
    """

    path: bytes
    data: bytes
    mode: int = 0o644
    mtime: int = 0  # nanoseconds since 1970


@dataclass(frozen=True)
class Call:
    """One run of a tool. All paths are absolute and those that the tool sees.

    `environment` is all of the environment. `stdin` None is /dev/null. With `joined`, what goes to
    standard error is among `Outcome.stdout` where it came, as with 2>&1. `modes` are files whose
    modes the tool copies to what it makes, as absolute paths that may lead through links and `..`:
    they are shown with the guest's modes, all others with the host's.
    """

    program: bytes  # under TOOLCHAIN, or where a Bind puts it
    argv: tuple[bytes, ...]
    environment: Mapping[bytes, bytes]
    cwd: bytes
    mounts: tuple[Mount, ...]
    stdin: bytes | None = None
    joined: bool = False
    umask: int = 0o022
    binds: tuple[Bind, ...] = ()
    given: tuple[Given, ...] = ()
    modes: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What one call may use. Sizes are in bytes, times in seconds."""

    seconds: float = 600.0  # wall time
    processor: int = 600  # processor time of each process
    memory: int = 3 << 30  # address space of each process
    processes: int = 64  # of all calls of the view at once, times `calls`
    open_files: int = 1024
    written: int = 1 << 30  # all that it writes to the view, temporary files included
    output: int = 64 << 20  # standard output and error, each
    entries: int = 20_000  # files that it leaves
    calls: int = 16  # at once; further ones wait


@dataclass(frozen=True)
class Written:
    """What a call has left at a path: made, changed or removed; never what it only read.

    `path` is where it really lies: no component is a symbolic link.
    `mode` is None where an existing file was written in place: it keeps its own.
    """

    path: bytes
    kind: str  # file, folder, link, gone
    mode: int | None = None
    data: bytes = field(default=b"", repr=False)  # a file's content, a link's target


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    `trouble` is empty when the outcome is the tool's own word. Else it says what the view did to
    it (`timeout`, `cancelled`, `space`, `output`, `entries`, `reserved`), and nothing of it is to
    be used: the call must run in the guest.
    """

    status: int | None  # None when a signal ended it
    signal: int | None
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)
    written: tuple[Written, ...]
    trouble: str
    wall: float  # seconds, as the next two
    user: float
    system: float
    memory: int  # the largest process, in bytes


def check_call(call: Call) -> None:
    """Raises UsageError for a call that cannot be made: no program ever sees a relative path."""
    absolute = [call.program, call.cwd, *(mount.at for mount in call.mounts)]
    absolute += [bind.at for bind in call.binds] + [given.path for given in call.given]
    for path in absolute:
        if not path.startswith(b"/") or b"\0" in path or b".." in path.split(b"/"):
            raise UsageError(f"not an absolute path without ..: {path!r}")
    if not any(mount.at == b"/" for mount in call.mounts):
        raise UsageError("a call needs a mount at /")
