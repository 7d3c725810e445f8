"""A virtfs tree as a whole: its model, its state, and how its folders are opened safely.

Everything is relative to descriptors and nothing follows a link, so that no name in a tree leads
out of it. A tree that is only partly staged is marked in a place that the guest cannot see.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from guestctl.archive.stream import write_all
from guestctl.errors import TreeError, UsageError
from guestctl.vmeta import (
    MAPPED_FILE,
    MAPPED_XATTR,
    META_DIR,
    MODELS,
    ROOT_FILE,
    STATE_NAME,
    STATE_XATTR,
    VIRTFS_PREFIX,
)

__all__ = [
    "NEW_FILE",
    "OPEN_DIR",
    "OPEN_FILE",
    "State",
    "check_model",
    "clear_state",
    "detect_model",
    "hold_tree",
    "is_partial",
    "open_dir",
    "open_tree",
    "read_small",
    "read_state",
    "remove_contents",
    "tree_state",
    "write_state",
]

OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_STATE_MAX = 1 << 20
_PATIENCE = 0.3  # seconds: the companion of a stage that was killed lets go within them

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


@dataclass(frozen=True, slots=True)
class State:
    """What stage leaves behind for those who come later.

    `partial`: a stage began and did not end; `source` and `into` say which, `fresh` that there was
    nothing at `into` before. `aside`: some entry has attributes that QEMU cannot store. `links`:
    tokens of the artifacts that it has hard links to: no guest may write to such a tree. `dirty`:
    which guest has it mounted, or had when it died; see guestctl.tree.dirt.
    """

    partial: bool = False
    aside: bool = False
    fresh: bool = False
    source: bytes = b""
    into: bytes = b""
    links: tuple[bytes, ...] = ()
    dirty: bytes = b""


def check_model(model: str) -> str:
    if model not in MODELS:
        raise UsageError(f"unknown security model {model!r}", hint=f"known: {', '.join(MODELS)}")
    return model


def open_dir(name: bytes, dir_fd: int) -> int:
    """Opens a folder of the tree; one of ours that lost its permissions gets them back."""
    try:
        return os.open(name, OPEN_DIR, dir_fd=dir_fd)
    except PermissionError:
        restore_access(name, dir_fd, stat.S_IFDIR, 0o700)
        return os.open(name, OPEN_DIR, dir_fd=dir_fd)


def restore_access(name: bytes, dir_fd: int, form: int, mode: int) -> None:
    """Makes an entry of ours accessible; PermissionError where it is not ours."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        info = os.fstat(fd)
        if stat.S_IFMT(info.st_mode) != form:
            raise PermissionError(errno.EACCES, "not accessible")
        os.chmod(f"/proc/self/fd/{fd}", mode)  # an O_PATH descriptor knows no fchmod
    finally:
        os.close(fd)


@contextlib.contextmanager
def open_tree(tree: Path) -> Iterator[int]:
    """Yields a descriptor of the root of an existing tree."""
    try:
        fd = os.open(os.fsencode(tree), OPEN_DIR & ~os.O_NOFOLLOW)
    except OSError as error:
        raise TreeError(f"{os.fsdecode(tree)}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def read_small(name: bytes, dir_fd: int, limit: int) -> bytes | None:
    """Reads a regular file of at most `limit` bytes; None if there is none.

    :raise ValueError: it is no regular file, or larger.
    """
    try:
        fd = os.open(name, OPEN_FILE, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    except PermissionError:
        restore_access(name, dir_fd, stat.S_IFREG, 0o600)
        fd = os.open(name, OPEN_FILE, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
            raise ValueError("no regular file") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("no regular file")
        data = os.read(fd, limit + 1)
    finally:
        os.close(fd)
    if len(data) > limit:
        raise ValueError(f"more than {limit} bytes")
    return data


def detect_model(fd: int, shown: str = "the tree") -> str | None:
    """Tells which model the tree at `fd`, which messages call `shown`, is of; None: of none yet.

    :raise TreeError: it holds metadata of both.
    """
    names = os.listdir(fd)
    text = os.fsencode(META_DIR) in map(os.fsencode, names) or ROOT_FILE in map(os.fsencode, names)
    xattr = _has_virtfs(fd)
    if not text and not xattr:
        for name in sorted(map(os.fsencode, names))[:64]:
            try:
                child = os.open(name, OPEN_FILE, dir_fd=fd)
            except OSError:
                continue
            try:
                xattr = _has_virtfs(child)
            finally:
                os.close(child)
            if xattr:
                break
    if text and xattr:
        raise TreeError(
            f"{shown}: it holds metadata of both security models",
            hint="--security-model says which to believe; repair then removes the other",
        )
    return MAPPED_FILE if text else MAPPED_XATTR if xattr else None


def _has_virtfs(fd: int) -> bool:
    try:
        return any(os.fsencode(name).startswith(VIRTFS_PREFIX) for name in os.listxattr(fd))
    except OSError:
        return False


def read_state(fd: int) -> State:
    """Reads the state of the tree whose root is `fd`, of either model."""
    data = None
    try:
        meta = os.open(META_DIR, OPEN_DIR, dir_fd=fd)
    except OSError:
        pass
    else:
        try:
            data = read_small(STATE_NAME, meta, _STATE_MAX)
        except (OSError, ValueError):
            return State(partial=True)  # whoever made this did not want it read
        finally:
            os.close(meta)
    if data is None:
        try:
            data = os.getxattr(fd, STATE_XATTR)
        except OSError:
            return State()
    fields = dict(line.partition(b"=")[::2] for line in data.split(b"\n"))

    def text(key: bytes) -> bytes:
        return bytes.fromhex(fields.get(key, b"").decode("ascii", "replace"))

    try:
        return State(
            partial=fields.get(b"state") != b"ready",
            aside=fields.get(b"aside") == b"1",
            fresh=fields.get(b"fresh") == b"1",
            source=text(b"source"),
            into=text(b"into"),
            links=tuple(fields.get(b"links", b"").split()),
            dirty=text(b"dirty"),
        )
    except ValueError:
        return State(partial=True)


def write_state(fd: int, model: str, state: State) -> None:
    """Writes the mark, durable enough to survive us but not a power cut."""
    data = b"state=%b\naside=%d\nfresh=%d\nsource=%b\ninto=%b\nlinks=%b\ndirty=%b\n" % (
        b"partial" if state.partial else b"ready",
        state.aside,
        state.fresh,
        state.source.hex().encode(),
        state.into.hex().encode(),
        b" ".join(state.links),
        state.dirty.hex().encode(),
    )
    if model == MAPPED_XATTR:
        os.setxattr(fd, STATE_XATTR, data)
        return
    with contextlib.suppress(FileExistsError):
        os.mkdir(META_DIR, 0o700, dir_fd=fd)
    meta = open_dir(META_DIR, fd)
    try:
        # Aside and renamed: a mark that is cut short must not read as "ready".
        with contextlib.suppress(FileNotFoundError):
            os.unlink(ROOT_FILE, dir_fd=meta)
        new = os.open(ROOT_FILE, NEW_FILE, 0o600, dir_fd=meta)
        try:
            write_all(new, data)
            os.rename(ROOT_FILE, STATE_NAME, src_dir_fd=meta, dst_dir_fd=meta)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(ROOT_FILE, dir_fd=meta)
                os.rmdir(META_DIR, dir_fd=fd)
            raise
        finally:
            os.close(new)
    finally:
        os.close(meta)


def clear_state(fd: int, model: str) -> None:
    """Removes the mark, and the metadata folder if nothing else is in it."""
    if model == MAPPED_XATTR:
        try:
            os.removexattr(fd, STATE_XATTR)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
        return
    with contextlib.suppress(FileNotFoundError):
        meta = open_dir(META_DIR, fd)
        try:
            os.unlink(STATE_NAME, dir_fd=meta)
        finally:
            os.close(meta)
        with contextlib.suppress(OSError):
            os.rmdir(META_DIR, dir_fd=fd)


def tree_state(tree: Path) -> State:
    """Returns the state of a tree; TreeError if it cannot be opened."""
    with open_tree(tree) as fd:
        return read_state(fd)


def is_partial(tree: Path) -> bool:
    """Whether a stage into this tree began and did not end: no guest should get it."""
    return tree_state(tree).partial


@contextlib.contextmanager
def hold_tree(
    tree: Path | int, *, exclusive: bool = False, name: str = "the tree"
) -> Iterator[int]:
    """Holds a tree, which messages call `name`, against staging (and, if exclusive, collecting).

    Whoever mounts a tree in a guest holds it exclusively meanwhile. The hold ends with the process,
    or with the last to inherit the descriptor that is yielded.

    :raise TreeError: another holds it.
    """
    fd = os.dup(tree) if isinstance(tree, int) else -1
    try:
        if fd < 0:
            fd = os.open(os.fsencode(tree), OPEN_DIR & ~os.O_NOFOLLOW)  # type: ignore[arg-type]
        else:
            # flock belongs to the open file description, which dup shares: open it anew.
            anew = os.open(b".", OPEN_DIR, dir_fd=fd)
            os.close(fd)
            fd = anew
        _lock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, name)
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def _lock(fd: int, kind: int, name: str) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                what = f"{name}: it is in use: a guest has it mounted, or it is being staged"
                raise TreeError(what, hint="unmount it in the guest first") from None
        time.sleep(0.01)


def remove_contents(fd: int, *, keep: bytes | None = None) -> None:
    """Removes all that is in the folder but `keep`, deepest first, without following anything."""
    names = [name for name in _names(fd) if name != keep]
    stack: list[tuple[int, bytes, list[bytes]]] = [(os.dup(fd), b"", names)]
    try:
        while stack:
            top, name, names = stack[-1]
            if not names:
                stack.pop()
                os.close(top)
                if stack:
                    os.rmdir(name, dir_fd=stack[-1][0])
                continue
            child = names.pop()
            try:
                os.unlink(child, dir_fd=top)
            except (IsADirectoryError, PermissionError):
                below = open_dir(child, top)
                stack.append((below, child, _names(below)))
    finally:
        for top, _, _ in stack:
            os.close(top)


def _names(fd: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(fd)]
