"""QMP for synchronous callers: the one place where asyncio runs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, QMPClient, QMPError

from guestctl.errors import GuestctlError
from guestctl.rundir import connected_socket

__all__ = ["MonitorError", "execute"]

_SETTLE = 0.1
# The library logs what we turn into errors of our own.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class MonitorError(GuestctlError):
    """QEMU's monitor is gone, does not answer, or refused a command."""


def execute(path: Path, *commands: str, timeout: float = 5.0) -> list[Any]:
    """What QEMU at socket `path` answers to `commands`, in one connection.

    `quit` answers None. Raises MonitorError, after `timeout` seconds at the latest.
    """
    try:
        return asyncio.run(asyncio.wait_for(_greeted(path, commands), timeout))
    except TimeoutError:
        raise MonitorError(f"the monitor did not answer within {timeout:g} s") from None
    except (QMPError, OSError) as error:
        raise MonitorError(f"the monitor failed: {error}") from None


async def _greeted(path: Path, commands: tuple[str, ...]) -> list[Any]:
    """Tries again where the end of the session before ours reached QEMU after our beginning."""
    try:
        return await _execute(path, commands)
    except ConnectError:
        await asyncio.sleep(_SETTLE)
        return await _execute(path, commands)


async def _execute(path: Path, commands: tuple[str, ...]) -> list[Any]:
    client = QMPClient("guestctl")
    connection = connected_socket(path)
    connection.setblocking(False)
    await client.connect(connection)
    answers = []
    try:
        for command in commands:
            answers.append(await client.execute(command))
    finally:
        try:
            await client.disconnect()
        except (QMPError, EOFError):
            # After `quit` the other end is simply gone.
            pass
    return answers
