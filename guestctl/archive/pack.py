"""Where a collected archive goes: a file by its final name only when whole, or a stream.

The compression is chosen by the name. It never depends on how many processors there are.
"""

from __future__ import annotations

import contextlib
import errno
import lzma
import os
import stat
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, Protocol

from guestctl.archive.stream import CHUNK, copy_range, write_all
from guestctl.errors import TreeError, UsageError
from guestctl.pump import Pump

__all__ = ["Sink", "open_sink"]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Out = Path | BinaryIO

_GZIP_PIECE = 1 << 20  # gzip looks back 32 KiB only
_XZ_PIECE = 4 << 20
_ZSTD_PIECE = 3 << 20  # its own threads would hold 100 MB of what does not compress
# Memory is to stay below 100 MB: an encoder of xz takes 12 MB.
_GZIP_THREADS = 8
_THREADS = 2
_BIG = 1 << 16
_PIECES = 512
_HELD_MAX = 8 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Filter(Protocol):
    def write(self, data: bytes) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


def _gzip(data: bytes) -> bytes:
    engine = zlib.compressobj(6, zlib.DEFLATED, 31)
    return engine.compress(data) + engine.flush()


# The dictionary decides the memory, and a larger one gains little within a piece.
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 3, "dict_size": 1 << 20}]


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC64, filters=_XZ)


def _zstd(data: bytes) -> bytes:
    from guestctl.archive import libarc

    return libarc.squeezed(data, "zstd")


class _Pieces:
    """A file of pieces of fixed size, compressed side by side: every tool reads one stream."""

    def __init__(
        self,
        sink: Callable[[bytes], None],
        threads: int,
        squeeze: Callable[[bytes], bytes],
        piece: int,
    ) -> None:
        self._sink = sink
        self._squeeze = squeeze
        self._piece = piece
        self._pool = ThreadPoolExecutor(threads)
        self._jobs: deque[Future[bytes]] = deque()
        self._most = threads
        self._buffer = bytearray()
        self._any = False

    def write(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= self._piece:
            self._submit(bytes(self._buffer[: self._piece]))
            del self._buffer[: self._piece]

    def _submit(self, data: bytes) -> None:
        self._any = True
        self._jobs.append(self._pool.submit(self._squeeze, data))
        while len(self._jobs) > self._most:
            self._sink(self._jobs.popleft().result())

    def finish(self) -> None:
        if self._buffer or not self._any:
            self._submit(bytes(self._buffer))
        while self._jobs:
            self._sink(self._jobs.popleft().result())

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class Sink:
    """Takes the bytes of an archive, in order, and writes them in batches.

    A plain file is written at once; for all else a thread does it.
    """

    def __init__(self, write: Callable[[bytes], object], fd: int = -1) -> None:
        """`fd` is that of a plain file, or -1: then `write` takes what there is."""
        self._write = write
        self._fd = fd
        self._pieces: list[bytes | memoryview] = []
        self._gathered = 0
        self._pump = Pump()
        self._begun = self._held = 0
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        self._pieces.append(data)
        self._gathered += len(data)
        self.size += len(data)
        if self._gathered >= CHUNK or len(self._pieces) >= _PIECES:
            self.flush()

    def lend(self, data: memoryview) -> None:
        """The same of memory that is only good until `settle`."""
        self.write(data if self._fd >= 0 else bytes(data))

    def settle(self) -> None:
        """Returns when nothing that was lent is needed any more."""
        if self._fd >= 0:
            self.flush()

    def copy(self, fd: int, offset: int, size: int, path: bytes) -> None:
        """Copies a region of `fd`.

        :raise TreeError: the file, `path`, ended before.
        """
        if self._fd >= 0 and size >= _BIG:
            self.size += size
            self.flush()
            try:
                if copy_range(fd, offset, self._fd, size) != size:
                    raise _shrank(path)
            except OSError as error:
                if error.errno in _FULL:
                    raise  # it is the archive that cannot grow, not the file
                raise TreeError(
                    f"{os.fsdecode(path)}: cannot be copied: {error.strerror}"
                ) from error
            self._start_writing(size)
            return
        while size:
            try:
                data = os.pread(fd, min(size, CHUNK), offset)
            except OSError as error:
                raise TreeError(f"{os.fsdecode(path)}: {error.strerror}") from error
            if not data:
                raise _shrank(path)
            self.write(data)
            offset += len(data)
            size -= len(data)

    def _start_writing(self, size: int) -> None:
        """Has the kernel begin to write what it holds, so that the final sync finds little left."""
        self._held += size
        if self._held >= _HELD_MAX:
            begun, held = self._begun, self._held
            self._begun += held
            self._held = 0
            self._pump.put(lambda wanted: self._advise(begun, held, wanted))

    def _advise(self, begun: int, held: int, wanted: bool) -> None:
        if wanted:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, begun, held, os.POSIX_FADV_DONTNEED)

    def flush(self) -> None:
        if not self._pieces:
            return
        pieces, self._pieces = self._pieces, []
        size, self._gathered = self._gathered, 0
        if self._fd < 0:
            self._pump.put(lambda wanted: self._push(b"".join(pieces), wanted))
            return
        done = os.writev(self._fd, pieces)
        if done < size:
            write_all(self._fd, b"".join(pieces)[done:])
        self._start_writing(size)

    def _push(self, data: bytes, wanted: bool) -> None:
        if wanted:
            self._write(data)

    def finish(self) -> None:
        """Returns when all is written; raises what went wrong."""
        self.flush()
        self._pump.drain()

    def close(self) -> None:
        self._pump.close()


def _shrank(path: bytes) -> TreeError:
    return TreeError(f"{os.fsdecode(path)}: it shrank while it was read")


def _filter(name: str, raw: Callable[[bytes], None], threads: int) -> _Filter | None:
    if name.endswith((".tar.gz", ".tgz")):
        return _Pieces(raw, min(threads, _GZIP_THREADS), _gzip, _GZIP_PIECE)
    if name.endswith((".tar.xz", ".txz")):
        return _Pieces(raw, _THREADS, _xz, _XZ_PIECE)
    if name.endswith((".tar.zst", ".tzst")):
        return _Pieces(raw, _THREADS, _zstd, _ZSTD_PIECE)
    if not name.endswith(".tar"):
        raise UsageError(
            f"{name}: its ending names no kind of archive",
            hint="known are .tar, .tar.gz, .tar.xz and .tar.zst",
        )
    return None


@contextlib.contextmanager
def open_sink(out: Out, threads: int, *, tree: int = -1) -> Iterator[Sink]:
    """Yields where to write. A file appears under its name when all went well, and only then.

    `tree` is a folder that it must not lie in, or -1.

    :raise TreeError: it cannot be written.
    """
    named = isinstance(out, (str, bytes, os.PathLike))
    shown = os.fsdecode(out) if named else "the archive"  # type: ignore[arg-type]
    try:
        with _to_path(out, threads, tree) if named else _to_stream(out) as sink:  # type: ignore[arg-type]
            yield sink
    except BrokenPipeError:
        raise  # whoever reads has had enough
    except OSError as error:
        raise TreeError(f"{shown}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _to_stream(writer: BinaryIO) -> Iterator[Sink]:
    def push(data: bytes) -> None:
        view = memoryview(data)
        while view:  # a raw stream may take less
            view = view[writer.write(view) or len(view) :]

    sink = Sink(push)
    try:
        yield sink
        sink.finish()
    finally:
        sink.close()
    writer.flush()


@contextlib.contextmanager
def _to_path(out: Path, threads: int, tree: int) -> Iterator[Sink]:
    given = os.fsencode(out)
    # A link stays, and the file that it leads to is replaced.
    folder, name = os.path.split(os.path.realpath(given) if os.path.islink(given) else given)
    dir_fd = os.open(folder or b".", _FOLDER)
    try:
        if tree >= 0 and _is_below(dir_fd, tree):
            raise UsageError(
                f"{os.fsdecode(given)}: the archive would lie in the tree that goes into it"
            )
        with contextlib.suppress(FileNotFoundError):
            form = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
            if stat.S_ISDIR(form):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(form):
                raise UsageError(
                    f"{os.fsdecode(given)}: no file, and it would be replaced by one",
                    hint="collect to -, standard output, and direct that to it",
                )
        with _to_file(dir_fd, name, os.fsdecode(os.path.basename(given)), threads) as sink:
            yield sink
    finally:
        os.close(dir_fd)


def _is_below(folder: int, top: int) -> bool:
    """Whether the folder is `top`, or lies in it."""
    wanted = os.fstat(top)
    here = os.dup(folder)
    try:
        while True:
            info = os.fstat(here)
            if os.path.samestat(info, wanted):
                return True
            above = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = above
            if os.path.samestat(os.fstat(here), info):
                return False
    finally:
        os.close(here)


@contextlib.contextmanager
def _to_file(dir_fd: int, name: bytes, shown: str, threads: int) -> Iterator[Sink]:
    aside = b".%b.%d.part" % (name[:200], os.getpid())
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside, dir_fd=dir_fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

    def raw(data: bytes) -> None:
        write_all(fd, data)

    fd = -1
    squeeze: _Filter | None = None
    sink: Sink | None = None
    try:
        squeeze = _filter(shown, raw, threads)
        fd = os.open(aside, flags, 0o666, dir_fd=dir_fd)
        sink = Sink(squeeze.write) if squeeze else Sink(raw, fd)
        yield sink
        sink.finish()
        if squeeze:
            squeeze.finish()
        os.fsync(fd)
        os.rename(aside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        os.fsync(dir_fd)
    except BaseException:
        # Whether or not `fd` says that it was made: Ctrl-C may come between the two.
        with contextlib.suppress(OSError):
            os.unlink(aside, dir_fd=dir_fd)
        raise
    finally:
        if sink:
            sink.close()
        if squeeze:
            squeeze.close()
        if fd >= 0:
            os.close(fd)
