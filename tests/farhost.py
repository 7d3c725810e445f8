"""A real distccd on loopback, with nothing but the compilers that a test allows."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guestctl.offload import CompileHost
from tests.fairness import until

CROSS = "arm-linux-gnueabi"


class FarHost:
    """Can be lost and come back. `folder` holds its list of compilers, its files and its log."""

    def __init__(self, folder: Path, limit: int = 4, lzo: bool = False) -> None:
        self.folder = folder
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.host = CompileHost("127.0.0.1", port, limit, lzo)
        self.allow(*(f"/usr/bin/{CROSS}-{name}" for name in ("gcc", "gcc-12", "g++", "g++-12")))
        self._server: subprocess.Popen[bytes] | None = None

    def allow(self, *compilers: str | Path) -> None:
        (self.folder / "allowed").write_text("".join(f"{path}\n" for path in compilers))

    def script(self, name: str, text: str) -> Path:
        """A compiler of the test's own."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def start(self) -> None:
        self._server = subprocess.Popen(
            ["distccd", "--daemon", "--no-detach", "--listen", "127.0.0.1", "--allow", "127.0.0.1",
             "--port", str(self.host.port), "--jobs", str(self.host.limit), "--log-level", "info",
             "--log-file", str(self.folder / "log")],
            env={
                "PATH": "/usr/bin:/bin",
                "TMPDIR": str(self.folder),
                "DISTCC_CMDLIST": str(self.folder / "allowed"),
            },
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((self.host.address, self.host.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self._server.poll() is None
                time.sleep(0.02)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """Ends it with all its children, or only stops them all. Where one of them has not died
        yet, its port still takes connections and resets them: ended is when it refuses.
        """
        if self._server is None:
            return
        os.killpg(self._server.pid, number)
        if number == signal.SIGKILL:
            self._server.wait(30)
            self._server = None
            until(self._refuses)

    def _refuses(self) -> bool:
        try:
            socket.create_connection((self.host.address, self.host.port), timeout=1).close()
        except OSError as error:
            return error.errno == errno.ECONNREFUSED
        return False

    def served(self) -> int:
        """How many compilations it says that it has done."""
        return (self.folder / "log").read_text(errors="replace").count(" COMPILE_OK ")


@contextmanager
def far_host(folder: Path, limit: int = 4, lzo: bool = False) -> Iterator[FarHost]:
    """A distccd that runs until the end."""
    made = FarHost(folder, limit, lzo)
    made.start()
    try:
        yield made
    finally:
        made.stop()
