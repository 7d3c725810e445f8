"""Where steps are made: a cache by inputs, atomic and locked, and programs run with a log.

A step is a folder that is made under another name, synced, and renamed into place: it is there
whole or not at all. Whoever else wants the same step waits for the first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from guestctl.errors import ImageError

__all__ = ["Progress", "Report", "Step", "Workshop", "digest", "lock_file", "sync_tree"]

_LOCK_DEADLINE = 7200.0
_TAIL = 15


@dataclass(frozen=True)
class Progress:
    """What a build tells its caller: `state` is waits, starts, runs, cached or done.

    `share` is the part that is done, from 0 to 1, where it is known.
    """

    step: str
    state: str
    text: str = ""
    share: float | None = None


Report = Callable[[Progress], None]


def digest(facts: Any) -> str:
    """The SHA-256 of what can be written as JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Workshop:
    """Makes steps below `directory`, with `jobs` processes at once; `environment` is theirs."""

    def __init__(self, directory: Path, *, jobs: int, report: Report) -> None:
        self._directory = directory
        self.jobs = jobs
        self.report = report
        self.broken = threading.Event()  # set when another step failed: the rest gives up

    @staticmethod
    def place(directory: Path, name: str, facts: Any) -> Path:
        """Where `make` puts a step, whether it is there or not."""
        return directory / "steps" / f"{name}-{digest(facts)[:16]}"

    def make(self, name: str, facts: Any, work: Callable[[Step], None]) -> Path:
        """Returns the folder of the step `name` made from `facts`, after making it if need be.

        `work` fills `step.out`. Raises ImageError, with the log's end, when it fails.
        """
        key = digest(facts)[:16]
        place = self.place(self._directory, name, facts)
        if place.is_dir():
            self.report(Progress(name, "cached"))
            os.utime(place)
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        log = self._directory / "logs" / f"{name}-{key}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        lock = place.parent / f".{name}-{key}.lock"
        with lock_file(lock, lambda: self.report(Progress(name, "waits", "another build"))) as held:
            if place.is_dir():
                self.report(Progress(name, "cached"))
                return place
            scratch = place.parent / f".{name}-{key}.part"
            _remove(scratch)
            self.report(Progress(name, "starts", str(log)))
            began = time.monotonic()
            try:
                (scratch / "out").mkdir(parents=True)
                with log.open("w") as stream:
                    work(Step(self, name, scratch / "out", scratch, log, stream, held))
                sync_tree(scratch / "out")
                (scratch / "out").replace(place)
                _sync(place.parent)
            except OSError as error:
                self.broken.set()
                if error.errno == errno.ENOSPC:
                    raise _disk_full(self._directory) from None
                raise ImageError(
                    f"{name}: {error.filename or log}: {error.strerror}", hint=f"the log is {log}"
                ) from error
            except BaseException:
                self.broken.set()
                raise
            finally:
                _remove(scratch)
            lock.unlink(missing_ok=True)
            self.report(Progress(name, "done", f"{time.monotonic() - began:.0f} s"))
        return place

    def sweep(self) -> None:
        """Removes what killed builds have left of steps that nobody makes now."""
        for scratch in (self._directory / "steps").glob(".*.part"):
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                lock = scratch.with_suffix(".lock")
                with lock.open("r+") as held:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(scratch)
                    lock.unlink()


@dataclass(frozen=True)
class Step:
    """A step in the making: `out` becomes its folder, `scratch` is thrown away."""

    workshop: Workshop
    name: str
    out: Path
    scratch: Path
    log: Path
    stream: IO[str]
    held: int  # the lock's descriptor: programs inherit it, so that it outlives us with them

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Callable[[IO[bytes]], None] | None = None,
        deadline: float = 3600,
    ) -> None:
        """Runs a program to its end; `stdin` writes what it reads. Raises ImageError."""
        argv = [str(word) for word in command]
        path = f"{os.defpath}:/usr/local/bin:/usr/sbin:/sbin"
        if "/" not in argv[0] and shutil.which(argv[0], path=path) is None:
            raise ImageError(f"{self.name}: there is no program {argv[0]}")
        self.stream.write(f"+ {' '.join(argv)}\n")
        self.stream.flush()
        settings = {"PATH": path, "LC_ALL": "C", "HOME": str(self.scratch), "TZ": "UTC"}
        process = subprocess.Popen(
            # Should we be killed, the program is told to end as well.
            ["setpriv", "--pdeathsig", "TERM", *argv], cwd=cwd or self.scratch,
            env=settings | dict(env or {}), stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=self.stream, stderr=self.stream, start_new_session=True, pass_fds=[self.held],
        )  # fmt: skip
        try:
            if stdin and process.stdin:
                # When the reader dies, its own complaint says more than our broken pipe.
                with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                    stdin(pipe)
            self._wait(process, argv[0], deadline)
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode != 0:
            raise self._failure(Path(argv[0]).name, process.returncode)

    def _wait(self, process: subprocess.Popen[bytes], program: str, deadline: float) -> None:
        until = time.monotonic() + deadline
        while True:
            try:
                process.wait(0.5)
                return
            except subprocess.TimeoutExpired:
                if time.monotonic() > until:
                    message = f"{self.name}: {program} took more than {deadline:.0f} s"
                    raise ImageError(message, hint=f"the log is {self.log}") from None
                if self.workshop.broken.is_set():
                    raise ImageError(
                        f"{self.name}: given up, because another step failed"
                    ) from None
                self.workshop.report(Progress(self.name, "runs", _last_line(self.log)))

    def _failure(self, program: str, status: int) -> ImageError:
        text = self.log.read_text(errors="replace")
        if "No space left on device" in text:
            return _disk_full(self.out)
        tail = "".join(f"\n  {line}" for line in text.splitlines()[-_TAIL:])
        return ImageError(
            f"{self.name}: {program} ended with status {status}; the log ends with:{tail}",
            hint=f"the whole log is {self.log}",
        )


@contextlib.contextmanager
def lock_file(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Holds `path` exclusively; `waiting` is called once when another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + _LOCK_DEADLINE
    told = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file that we hold.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except BlockingIOError:
            if not told:
                waiting()
                told = True
        os.close(descriptor)
        if time.monotonic() > until:
            raise ImageError(f"{path} is held by another build for too long")
        time.sleep(0.1)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Forces the files and folders below `folder` to the disk."""
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base, name)
            if not path.is_symlink():
                _sync(path)
        _sync(Path(base))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Removes a tree, whose folders may lack the owner's write permission."""
    for base, names, _ in os.walk(folder):
        for name in names:
            path = Path(base, name)
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:120]


def _disk_full(where: Path) -> ImageError:
    while not where.exists():
        where = where.parent
    free = shutil.disk_usage(where).free >> 20
    return ImageError(f"the disk is full: {where} has {free} MiB left", hint="an image takes 4 GiB")
