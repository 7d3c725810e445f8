"""The host side of a view: one worker process, and calls from any thread."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from guestctl.errors import UsageError, ViewError, ViewUnavailable
from guestctl.view.calls import Call, Limits, Outcome, Tree, Written, check_call
from guestctl.view.codec import Reply, encode_call, encode_settings, parse_bundle
from guestctl.view.worker import Worker, memory_file, receive_reply, worker_program

__all__ = ["View", "why_no_view"]

# How much longer than a call's own time we wait for its end to be told.
_GRACE_SECONDS = 30.0


class View:
    """Tools of one toolchain over the trees of one guest, for as long as a lease lasts.

    :param trees: by the names that mounts of calls have for them.
    :param toolchain: the folder that calls see at TOOLCHAIN.
    :param cache_dir: where the worker is compiled to, once.
    :raise ViewUnavailable: this host has no confined view, with the reason.
    """

    def __init__(
        self,
        trees: Mapping[str, Tree],
        toolchain: Path,
        *,
        cache_dir: Path,
        limits: Limits | None = None,
    ) -> None:
        self.trees = dict(trees)
        self.toolchain = toolchain
        self.limits = limits or Limits()
        settings = encode_settings(self.trees, toolchain, self.limits)
        self._worker = Worker(worker_program(cache_dir), settings)
        self._slots = threading.BoundedSemaphore(self.limits.calls)
        self._lock = threading.Lock()
        self._running: dict[int, socket.socket] = {}

    def __enter__(self) -> View:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The worker's process: when it ends, every call does."""
        return self._worker.pid

    def call(self, call: Call, begun: Callable[[], None] = lambda: None) -> Outcome:
        """Runs a tool to its end; from any thread, several at once.

        `begun` is called as soon as `cancel` can end the call, before anything runs.

        :raise UsageError: the call makes no sense (a relative path, no such tree).
        :raise ViewError: the view could not be made or was lost: the call must run in the guest.
        """
        check_call(call)
        for mount in call.mounts:
            if mount.tree is not None and mount.tree not in self.trees:
                raise UsageError(f"the view has no tree {mount.tree}")
        life, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as files:
            files.enter_context(life)
            files.enter_context(theirs)
            files.enter_context(self._cancellable(call, life))
            begun()
            files.enter_context(self._slots)
            body = _file(files, "call", encode_call(call, self.trees))
            stdin = _file(files, "stdin", call.stdin) if call.stdin is not None else _null(files)
            stdout = _file(files, "stdout")
            stderr = stdout if call.joined else _file(files, "stderr")
            bundle = _file(files, "bundle")
            self._send([body, theirs.fileno(), stdin, stdout, stderr, bundle])
            theirs.close()
            reply = self._wait(life)
            return Outcome(
                status=os.WEXITSTATUS(reply.status) if os.WIFEXITED(reply.status) else None,
                signal=os.WTERMSIG(reply.status) if os.WIFSIGNALED(reply.status) else None,
                stdout=_content(stdout, self.limits.output),
                stderr=b"" if call.joined else _content(stderr, self.limits.output),
                written=() if reply.trouble else _written(bundle),
                trouble=reply.trouble,
                wall=reply.wall,
                user=reply.user,
                system=reply.system,
                memory=reply.memory,
            )

    def cancel(self, call: Call) -> None:
        """Kills a running or waiting call (this very object): its `trouble` is `cancelled`."""
        with self._lock:
            life = self._running.get(id(call))
            if life is not None:
                life.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Kills all calls and the worker."""
        self._worker.close()

    @contextlib.contextmanager
    def _cancellable(self, call: Call, life: socket.socket) -> Iterator[None]:
        with self._lock:
            self._running[id(call)] = life
        try:
            yield
        finally:
            with self._lock:
                del self._running[id(call)]

    def _send(self, files: list[int]) -> None:
        try:
            self._worker.send(b"C", files)
        except OSError as error:
            raise ViewError(f"the view's worker is gone: {error.strerror}") from None

    def _wait(self, life: socket.socket) -> Reply:
        try:
            reply = receive_reply(life, self.limits.seconds + _GRACE_SECONDS)
        except TimeoutError:
            raise ViewError("the view's worker does not answer") from None
        except OSError as error:
            raise ViewError(f"the view's worker is gone: {error.strerror}") from None
        if reply is None:
            raise ViewError("a call in the view ended without a word")
        if reply.state == "failed":
            raise ViewError(f"no view: {reply.text}: {os.strerror(reply.error)}")
        return reply


def why_no_view(cache_dir: Path) -> str:
    """Why this host cannot confine a tool, for `doctor`; empty when it can."""
    try:
        Worker(worker_program(cache_dir), encode_settings({}, Path("/usr"), Limits())).close()
    except ViewUnavailable as error:
        return str(error)
    return ""


def _file(files: contextlib.ExitStack, name: str, data: bytes = b"") -> int:
    fd = memory_file(name, data)
    files.callback(os.close, fd)
    return fd


def _null(files: contextlib.ExitStack) -> int:
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    files.callback(os.close, fd)
    return fd


def _content(fd: int, most: int) -> bytes:
    return os.pread(fd, min(os.fstat(fd).st_size, most), 0)


def _written(bundle: int) -> tuple[Written, ...]:
    size = os.fstat(bundle).st_size
    if not size:
        return ()
    with mmap.mmap(bundle, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as data:
        return tuple(parse_bundle(data))
