"""The caller's terminal while a command in a guest has it: raw, its size passed on, and given back
as it was on every way out."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from types import FrameType, TracebackType
from typing import NoReturn

from guestctl.errors import GuestctlError, UsageError
from guestctl.process import Process

__all__ = ["Keys", "Terminal", "require_terminal", "stdin_is_terminal"]

ESCAPE = 0x1D  # Ctrl-]
_DETACH = ord("d")
_CHUNK = 4096


def stdin_is_terminal() -> bool:
    """Whether somebody can type; a stdin that is closed is none."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def require_terminal(what: str) -> None:
    """Raises UsageError unless stdin is a terminal."""
    if not stdin_is_terminal():
        raise UsageError(f"{what} needs a terminal as its stdin", hint="guestctl run takes a pipe")


class Keys:
    """Finds Ctrl-] d in what is typed. Ctrl-] twice is one Ctrl-]; all else passes unchanged."""

    def __init__(self) -> None:
        self._pending = False

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What goes to the guest, and whether to detach; then what follows is dropped."""
        out = bytearray()
        for byte in data:
            if self._pending:
                self._pending = False
                if byte == _DETACH:
                    return bytes(out), True
                out += bytes((ESCAPE,)) if byte == ESCAPE else bytes((ESCAPE, byte))
            elif byte == ESCAPE:
                self._pending = True
            else:
                out.append(byte)
        return bytes(out), False


class Terminal:
    """A context manager, for the main thread. `raw` as a shell in a guest wants it; otherwise keys
    come one by one and unseen, but Ctrl-C interrupts us as ever."""

    def __init__(self, *, raw: bool = True) -> None:
        self._handle = sys.stdin.fileno()
        self._raw = raw
        self._kept: list[object] = []
        self._handlers: dict[int, object] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread: threading.Thread | None = None

    @staticmethod
    def size() -> tuple[int, int]:
        """Rows and columns."""
        columns, rows = os.get_terminal_size(sys.stdin.fileno())
        return rows, columns

    def __enter__(self) -> Terminal:
        self._kept = termios.tcgetattr(self._handle)
        for number, handler in (
            (signal.SIGWINCH, self._changed),
            (signal.SIGCONT, self._back),
            (signal.SIGQUIT, _end),
        ):
            self._handlers[number] = signal.signal(number, handler)
        self._take()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _value: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        termios.tcsetattr(self._handle, termios.TCSADRAIN, self._kept)  # type: ignore[arg-type]
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        os.write(self._wake_write, b"q")
        if self._thread is not None:
            self._thread.join(1)

    def drive(self, process: Process, *, detachable: bool) -> None:
        """From now on a thread passes keys and sizes on to `process`."""
        self._thread = threading.Thread(
            target=self._type, args=(process, detachable), name="guestctl-keys", daemon=True
        )
        self._thread.start()

    def _take(self) -> None:
        if self._raw:
            tty.setraw(self._handle, termios.TCSADRAIN)
        else:
            tty.setcbreak(self._handle, termios.TCSADRAIN)

    def _changed(self, _number: int, _frame: FrameType | None) -> None:
        # Nothing may be sent from a signal's handler: we may be in the middle of a frame.
        self._wake()

    def _back(self, _number: int, _frame: FrameType | None) -> None:
        """We were stopped, and somebody else had the terminal."""
        self._take()
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"w")
        except BlockingIOError:
            # It has been woken often enough.
            pass

    def _type(self, process: Process, detachable: bool) -> None:
        keys = Keys()
        try:
            process.resize(*self.size())
            while True:
                ready, _, _ = select.select([self._handle, self._wake_read], [], [])
                if self._wake_read in ready:
                    if b"q" in os.read(self._wake_read, _CHUNK):
                        return
                    process.resize(*self.size())
                if self._handle in ready and not self._pass_on(process, keys, detachable):
                    return
        except GuestctlError:
            # Whoever waits for the command is told what has happened.
            return

    def _pass_on(self, process: Process, keys: Keys, detachable: bool) -> bool:
        """Passes on what was typed; says whether there will be more."""
        try:
            data = os.read(self._handle, _CHUNK)
        except OSError:
            data = b""
        if not data:
            # The terminal is gone, as a shell would be told.
            process.signal(signal.SIGHUP)
            return False
        typed, detach = keys.feed(data) if detachable else (data, False)
        if typed:
            process.stdin.write(typed)
        if detach:
            process.detach()
        return not detach


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Leaves through every `finally`."""
    sys.exit(128 + number)
