"""The console of a system that was packed and boots, as somebody who logs in has it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType

__all__ = ["Console"]

# What a terminal is told, and a file should not hold.
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Console:
    """A process whose standard input and output are a console. `seen` is all that it has said."""

    def __init__(self, argv: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.seen = b""
        self._read = 0
        self._process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
        )

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def await_(self, pattern: bytes, timeout: float = 300.0) -> bytes:
        """Reads until `pattern` comes, after all that was awaited before; returns what came before
        its end.

        :raise AssertionError: it does not come; the end of what was said is in it.
        """
        end = time.monotonic() + timeout
        while True:
            found = re.search(pattern, self.seen[self._read :])
            if found:
                begin = self._read
                self._read += found.end()
                return self.seen[begin : self._read]
            left = end - time.monotonic()
            assert left > 0, self._last(f"no {pattern!r} within {timeout:.0f} s")
            self._take(left, pattern)

    def type(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def run(self, command: str, prompt: bytes = b"# ", timeout: float = 300.0) -> str:
        """Types a command at a prompt; returns what it says until the prompt comes again."""
        self.type(f"{command}\n")
        said = self.await_(rb"\n" + re.escape(prompt), timeout)
        # The terminal echoes what is typed, and ends that line.
        text = _ESCAPES.sub(b"", said).decode(errors="replace")
        return text.partition("\n")[2].removesuffix(prompt.decode()).strip("\n")

    def end(self, timeout: float = 120.0) -> int:
        """Waits until the process has ended, and reads what it says meanwhile."""
        assert self._process.stdout is not None
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            assert left > 0, self._last("the console does not end")
            if not self._fill(left):
                return self._process.wait(max(left, 1.0))

    @property
    def text(self) -> str:
        """All that was said, without what only a terminal understands."""
        return _ESCAPES.sub(b"", self.seen).decode(errors="replace")

    def _take(self, timeout: float, pattern: bytes) -> None:
        assert self._fill(timeout), self._last(f"the console ended before {pattern!r}")

    def _fill(self, timeout: float) -> bool:
        """Reads what has come; false at its end."""
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        if not select.select([handle], [], [], min(timeout, 5.0))[0]:
            return True
        data = os.read(handle, 65536)
        self.seen += data
        return bool(data)

    def _last(self, what: str) -> str:
        return f"{what}; it said:\n" + "\n".join(self.text.splitlines()[-25:])
