"""Small files of a plain archive: a second process makes them, by folder, so that both are busy.

Of each, two have to be made, content and metadata. The stage reads headers and decides; a companion
reads the archive on its own and writes. What it has no time for the stage does itself.
"""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import select
import socket
from array import array
from typing import Any

from guestctl.companion import PACKET_MAX, Companion, receive, start_companion
from guestctl.errors import TreeError
from guestctl.vmeta import META_DIR

__all__ = ["FILE_MAX", "Filler", "fill", "serve"]

FILE_MAX = 1 << 20  # larger ones are copied in the kernel, by a thread
_FIRST = 64  # files after which a companion may be worth its start
_WORTH = 1500  # files that there must be still to come for that, as it seems from the first
_AHEAD = 12 << 10  # bytes of jobs that the companion may be behind: it ends soon after the stage
_BATCH = 64
_SPAN = 1 << 20  # bytes of the archive that are read at once
_OWED_MAX = 20_000  # names remembered until all are waited for
_SETTLE = 0
_DEADLINE = 600  # seconds for what the socket holds, at most some thousand small files
# What says that a packet finds no room: there is none now, or it is larger than the buffer.
_FULL = (errno.EAGAIN, errno.EMSGSIZE, errno.ETOOMANYREFS, errno.ENOBUFS)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# name, metadata, where the content begins in the archive, its size, mtime in ns
Job = tuple[bytes, bytes, int, int, int]


class _Orphaned(Exception):
    pass


def fill(source: int, fds: list[int], jobs: list[Job], parent: int = 0) -> None:
    """Makes the files of the folder and metadata folder `fds`; with `parent`, while that lives.

    :raise OSError: a write that fails; `filename` is the name.
    """
    dir_fd, meta = fds
    base, size = _span(jobs)
    block = memoryview(_read(source, base, size))
    name = b""
    try:
        for name, text, offset, size, mtime in jobs:
            if parent and os.getppid() != parent:
                raise _Orphaned
            fd = _new(name, dir_fd, meta)
            try:
                if size:
                    _write(fd, block[offset - base : offset - base + size])
                os.utime(fd, ns=(mtime, mtime))
            finally:
                os.close(fd)
            fd = _new(name, meta, -1)
            try:
                os.write(fd, text)
            finally:
                os.close(fd)
    except OSError as error:
        error.filename = name
        raise


def _span(jobs: list[Job]) -> tuple[int, int]:
    """The region of the archive that holds the content of all."""
    return jobs[0][2], jobs[-1][2] + jobs[-1][3] - jobs[0][2]


def _write(fd: int, data: memoryview) -> None:
    done = os.write(fd, data)
    while done < len(data):
        done += os.write(fd, data[done:])


def _read(source: int, offset: int, size: int) -> bytes:
    data = os.pread(source, size, offset)
    while len(data) < size:
        more = os.pread(source, size - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "the archive is cut short")
        data += more
    return data


def _new(name: bytes, dir_fd: int, meta: int) -> int:
    """Makes a file; what is there gives way, with its metadata. A folder must be empty."""
    try:
        return os.open(name, _NEW, 0o600, dir_fd=dir_fd)
    except FileExistsError:
        pass
    try:
        os.unlink(name, dir_fd=dir_fd)
    except (IsADirectoryError, PermissionError):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(name + b"/" + META_DIR, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)
    if meta >= 0:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=meta)
    return os.open(name, _NEW, 0o600, dir_fd=dir_fd)


def serve(channel_fd: int, parent: int, source: int, _lock: int) -> None:
    """The companion: fills until the socket closes, or the parent is gone.

    It inherits the lock of the tree, so that nobody else stages while it writes.
    """
    channel = socket.socket(fileno=channel_fd)
    channel.send(b"ready")
    while True:
        packet, fds = receive(channel, 2)
        if packet is None:
            return
        if packet == _SETTLE:
            channel.send(marshal.dumps(_SETTLE))
            continue
        path, jobs = packet
        try:
            fill(source, fds, jobs, parent)
        except _Orphaned:
            return
        except OSError as error:
            name = error.filename if isinstance(error.filename, bytes) else b""
            channel.send(marshal.dumps((path + b"/" + name, str(error.strerror))))
            return
        finally:
            for fd in fds:
                os.close(fd)


class Filler:
    """The stage's side: takes jobs, folder by folder."""

    def __init__(self, source: int, lock: int, *, label: str) -> None:
        """`source` is the archive, `lock` holds the tree; `label` names the source in messages."""
        self._source = source
        self._lock = lock
        self._label = label
        self._count = 0
        self._tried = False
        self._size = os.fstat(source).st_size
        self._companion: Companion | None = None
        self._path = b""
        self._fds: list[int] = []
        self._jobs: list[Job] = []
        self._owed: dict[bytes, set[bytes]] = {}  # what may not be there yet, by folder
        self._owing = 0

    def ready(self, offset: int) -> bool:
        """Whether there is a companion by now; each call stands for a file, which begins there."""
        if self._companion is None:
            self._count += 1
            if self._tried or self._count < _FIRST:
                return False
            if self._count * (self._size - offset) > _WORTH * offset:
                self._start()
        return self._companion is not None and self._companion.ready()

    def _start(self) -> None:
        self._tried = True
        self._companion = start_companion(__name__, "serve", [self._source, self._lock])
        if self._companion is not None:
            self._companion.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _AHEAD)

    def owes(self, path: bytes, name: bytes = b"") -> bool:
        """Whether that file, or without a name any file of the folder, may not be there yet."""
        names = self._owed.get(path)
        return names is not None and (not name or name in names)

    def put(self, path: bytes, dir_fd: int, meta: int, job: Job) -> None:
        """Takes a file of the folder `path`, whose descriptors these are. It may fail later."""
        names = self._owed.setdefault(path, set())
        if job[0] in names or self._owing >= _OWED_MAX:
            self.settle()
            names = self._owed.setdefault(path, set())
        jobs = self._jobs
        if jobs and (
            path != self._path or len(jobs) >= _BATCH or job[2] + job[3] - jobs[0][2] > _SPAN
        ):
            self._flush()
            jobs = self._jobs
        if not jobs:
            self._path = path
            self._fds = [os.dup(dir_fd), os.dup(meta)]
        jobs.append(job)
        names.add(job[0])
        self._owing += 1

    def _flush(self) -> None:
        if not self._jobs:
            return
        jobs, self._jobs = self._jobs, []
        try:
            if not self._sent(marshal.dumps((self._path, jobs))):
                fill(self._source, self._fds, jobs)
        except OSError as error:
            name = error.filename if isinstance(error.filename, bytes) else b""
            raise self._failed(self._path + b"/" + name, str(error.strerror)) from error
        finally:
            self._let_go()

    def _let_go(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def _sent(self, packet: bytes) -> bool:
        """Whether the companion took it; if not, it has enough to do."""
        assert self._companion is not None
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", self._fds))
        try:
            if len(packet) <= PACKET_MAX:
                self._companion.socket.sendmsg([packet], [rights], socket.MSG_DONTWAIT)
                return True
        except ConnectionError:
            self.settle()  # which says why
        except OSError as error:
            if error.errno not in _FULL:
                raise
        return False

    def settle(self) -> None:
        """Returns when all is written.

        :raise TreeError: a file could not be.
        """
        self._flush()
        if not self._owing or self._companion is None:
            return
        self._owing = 0
        self._owed.clear()
        channel = self._companion.socket
        with contextlib.suppress(OSError):  # if it has failed, there is an answer already
            channel.send(marshal.dumps(_SETTLE))
        answer = self._answer(channel)
        if answer is None:
            raise TreeError(f"{self._label}: the process that writes files beside is lost")
        if answer != _SETTLE:
            raise self._failed(*answer)

    @staticmethod
    def _answer(channel: socket.socket) -> Any:
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        for _ in range(2):  # what the end of the other side left unread comes first, as an error
            with contextlib.suppress(ConnectionError):
                return receive(channel)[0] if poll.poll(_DEADLINE * 1000) else None
        return None

    def _failed(self, path: bytes, why: str) -> TreeError:
        shown = os.fsdecode(path.strip(b"/"))
        return TreeError(f"{self._label}: {shown}: cannot be written: {why}")

    def close(self) -> None:
        """Ends the companion at once; what was not settled may be missing."""
        self._let_go()
        if self._companion is not None:
            self._companion.close()
            self._companion = None
