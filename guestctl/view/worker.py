"""The worker's program, compiled from host-view once a source, and its process."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import subprocess
import tempfile
from pathlib import Path

from guestctl import resources
from guestctl.errors import ViewUnavailable
from guestctl.view.codec import REPLY_SIZE, Reply, parse_reply

__all__ = ["Worker", "memory_file", "receive_reply", "worker_program"]

_PATH = "/usr/bin:/bin:/usr/local/bin"
_COMPILE_SECONDS = 120.0
_START_SECONDS = 60.0  # a tree of half a million files is read meanwhile


def worker_program(cache_dir: Path) -> Path:
    """Returns the worker, compiled if need be; raises ViewUnavailable where it cannot be."""
    sources = resources.host_view()
    state = hashlib.sha256()
    for path in sorted([*sources.glob("*.[ch]"), sources / "Makefile"]):
        data = path.read_bytes()
        state.update(f"{path.name} {len(data)}\n".encode() + data)
    folder = cache_dir / "view"
    program = folder / f"worker-{state.hexdigest()[:16]}"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _compile(sources, program)
    return program


def _compile(sources: Path, program: Path) -> None:
    with tempfile.TemporaryDirectory(dir=program.parent) as out:
        command = ["make", "--no-print-directory", "-C", str(sources), f"OUT={out}"]
        try:
            done = subprocess.run(
                command,
                env={"PATH": _PATH, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_COMPILE_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            raise ViewUnavailable(
                "compiling the view's worker needs make", hint="apt-get install make gcc libc6-dev"
            ) from None
        if done.returncode:
            reason = (done.stderr.decode(errors="backslashreplace").splitlines() or [""])[0]
            raise ViewUnavailable(
                f"the view's worker cannot be compiled: {reason}",
                hint="apt-get install gcc make libc6-dev",
            )
        os.replace(Path(out) / "view-worker", program)


class Worker:
    """A worker's process. Its end, or that of this object's process, is the end of its calls."""

    def __init__(self, program: Path, settings: bytes) -> None:
        """Starts it and waits until it has read the trees.

        :raise ViewUnavailable: it cannot confine anything here, with the kernel's reason.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [program, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={},
                cwd="/",
                # A terminal's Ctrl-C is for its owner, which may have calls to end in order.
                start_new_session=True,
            )
        try:
            self.send(b"S", [memory_file("settings", settings)])
            reply = receive_reply(self._socket, _START_SECONDS)
        except OSError as error:
            self.close()
            raise ViewUnavailable(f"the view's worker does not start: {error}") from None
        if reply is None or reply.state != "ready":
            self.close()
            raise ViewUnavailable(_reason(reply))

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, kind: bytes, files: list[int]) -> None:
        """Sends a packet; raises OSError when the worker is gone."""
        socket.send_fds(self._socket, [kind], files)

    def close(self) -> None:
        """Ends it and every call; returns when all of it is gone."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def memory_file(name: str, data: bytes = b"") -> int:
    """A file in memory that holds `data`, read from its beginning."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def receive_reply(connection: socket.socket, timeout: float) -> Reply | None:
    """None when the peer ended without one; raises TimeoutError."""
    connection.settimeout(timeout)
    data = connection.recv(REPLY_SIZE)
    return parse_reply(data) if len(data) == REPLY_SIZE else None


def _reason(reply: Reply | None) -> str:
    if reply is None:
        return "the view's worker ended at once"
    return f"tools cannot be confined here: {reply.text}: {os.strerror(reply.error)}"
