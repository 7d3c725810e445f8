"""QMP, as far as we speak it: commands one after the other over QEMU's monitor socket.

A start of a guest has some ten milliseconds for this, which is why it is not asyncio's. Source of
the format: docs/interop/qmp-spec in QEMU.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from guestctl.errors import GuestctlError
from guestctl.sockets import connected_socket

__all__ = ["Monitor", "MonitorError", "execute"]

_POLL = 0.005
_LINE_MAX = 1 << 20


class MonitorError(GuestctlError):
    """QEMU's monitor is gone, does not answer, or refused a command."""


def execute(path: Path, *commands: str, timeout: float = 5.0) -> list[Any]:
    """What QEMU at socket `path` answers to `commands`, in one connection.

    Raises MonitorError, after `timeout` seconds at the latest.
    """
    with Monitor(path, timeout) as monitor:
        return [monitor.ask(command) for command in commands]


class Monitor:
    """A conversation with QEMU that lasts at most `timeout` seconds. A context manager."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._rest = b""

    def __enter__(self) -> Monitor:
        """Connects; raises MonitorError."""
        while True:
            try:
                self._socket = connected_socket(self._path)
            except OSError as error:
                raise MonitorError(f"the monitor failed: {error}") from None
            try:
                self._line()  # the greeting
                self.ask("qmp_capabilities")
                return self
            except _HungUp:
                # The end of a session before ours has reached QEMU after our beginning.
                self._socket.close()
                self._left()
                time.sleep(_POLL)
            except BaseException:
                self._socket.close()
                raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def ask(self, command: str, *, files: Sequence[int] = (), **arguments: Any) -> Any:
        """What QEMU answers to a command; `files` are descriptors that go with it.

        Underscores in the names of arguments are dashes. Raises MonitorError.
        """
        told = {name.replace("_", "-"): value for name, value in arguments.items()}
        data = json.dumps({"execute": command, "arguments": told}).encode()
        try:
            self._socket.settimeout(self._left())
            sent = socket.send_fds(self._socket, [data], list(files)) if files else 0
            self._socket.sendall(data[sent:])
        except OSError as error:
            raise MonitorError(f"the monitor failed: {error}") from None
        while True:
            answer = self._line()
            if "error" in answer:
                raise MonitorError(f"{command}: {answer['error'].get('desc', answer)}")
            if "return" in answer:  # what else comes is an event
                return answer["return"]

    def await_status(self, command: str, wanted: str, wrong: Sequence[str]) -> None:
        """Asks until `status` is `wanted`; MonitorError where it is one of `wrong`, or too late."""
        while True:
            answer = self.ask(command)
            status = answer.get("status")
            if status == wanted:
                return
            if status in wrong:
                raise MonitorError(f"{command}: {answer.get('error-desc', status)}")
            self._left()
            time.sleep(_POLL)

    def _line(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            try:
                self._socket.settimeout(self._left())
                data = self._socket.recv(65536)
            except TimeoutError:
                self._left()
                continue
            except OSError as error:
                raise _HungUp(f"the monitor failed: {error}") from None
            if not data:
                raise _HungUp("the monitor failed: QEMU has hung up")
            self._rest += data
            if len(self._rest) > _LINE_MAX:
                raise MonitorError("the monitor talks without end")
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            raise MonitorError("the monitor talks nonsense") from None
        return answer if isinstance(answer, dict) else {}

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise MonitorError(f"the monitor did not answer within {self._timeout:g} s")
        return left


class _HungUp(MonitorError):
    """The connection ended."""
