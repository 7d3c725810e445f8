"""The agent of a machine at the other end of a serial device of this host, opened by pyserial.

What goes over it are the packets of guestctl.line, at 8N1 and without flow control: a UART has none
that can be trusted to exist. There is no key; whoever is at the other end of the cable is trusted
to be the machine that one means.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from guestctl.bridge import Bridge
from guestctl.errors import BoardError, UsageError
from guestctl.line import Line
from guestctl.spec import DEVICE

__all__ = ["Device", "DeviceAddress"]

_RATE = 115_200
_HINTS = {
    errno.EACCES: "the device's group may use it: dialout, on Debian",
    errno.EAGAIN: "guestctl pool list shows the pools",
}


@dataclass(frozen=True)
class DeviceAddress:
    path: str
    rate: int = _RATE

    @classmethod
    def parse(cls, text: str) -> DeviceAddress:
        """Of `serial:DEV` or `serial:DEV@RATE`; raises UsageError."""
        path, at, rate = text.removeprefix(DEVICE).partition("@")
        if not text.startswith(DEVICE) or not path or (at and not rate.isdigit()):
            raise UsageError(
                f"{text!r} is no serial device", hint="serial:/dev/ttyUSB0, or with @RATE in baud"
            )
        return cls(os.path.abspath(path), int(rate) if at else _RATE)

    def __str__(self) -> str:
        return f"{DEVICE}{self.path}@{self.rate}"


class Device:
    """Serves a listening unix socket: each client is given the stream of the machine behind it.

    `ended` is told, in a thread, when the device is gone, and why.
    """

    fault = ""

    def __init__(
        self, address: DeviceAddress, listening: socket.socket, ended: Callable[[str], None]
    ) -> None:
        """Raises BoardError where it cannot be opened, or another process has it."""
        self._bridge = Bridge(
            _opened(address),
            listening,
            Line.new(),
            ended=lambda why: ended(f"{address.path}: {why}"),
        )

    def close(self) -> None:
        """Takes no more clients."""
        self._bridge.close()


def _opened(address: DeviceAddress) -> int:
    """A descriptor of the device, which no other process has that asks as we do."""
    import serial  # which few have a use for

    try:
        with serial.Serial(address.path, address.rate, exclusive=True) as port:
            # The lock is the open file's, so that it stays with this one.
            return os.dup(port.fileno())
    except (serial.SerialException, OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error)
        raise BoardError(
            f"{address.path}: {'another process has it' if number == errno.EAGAIN else reason}",
            hint=_HINTS.get(number or 0, ""),
        ) from None
