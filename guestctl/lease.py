"""A guest for as long as somebody has leased it: from the greeting to giving it back."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from guestctl import services
from guestctl.agent import Agent
from guestctl.errors import GuestLost, ShareError
from guestctl.jobs import JobBook
from guestctl.journal import record
from guestctl.loss import explained, explaining
from guestctl.metering import Meter
from guestctl.mounting import Mounting
from guestctl.rundir import GuestDir
from guestctl.share import Share
from guestctl.sockets import connected_socket
from guestctl.wire import Op, Tag

if TYPE_CHECKING:
    from guestctl.offload import Offload

__all__ = ["Lease"]

_MEMORY_PER_JOB = 80
_SETTLE_TIMEOUT = 10.0
_CLOCK_TIMEOUT = 30.0
# A clock that was set so many seconds ago is right.
_SET_ENOUGH = 1.0


class Lease:
    """What guestctl.guest.Guest has besides its commands."""

    def __init__(self, folder: GuestDir, lease: int, agent: Agent) -> None:
        spec = folder.spec()
        self.name = folder.name
        self.arch = str(spec["arch"])
        self.board = bool(spec.get("member"))
        model = str(spec["security_model"])
        self.work = Share(Path(spec["work"]), self.name, model)
        self.base = Share(
            Path(spec["base"]),
            self.name,
            model,
            writable=False,
            confined=bool(spec["namespaces"]),
        )
        # An emulated target has one processor here, whatever its memory would allow.
        self.jobs = 1 if spec["accelerator"] == "tcg" else max(1, spec["memory"] // _MEMORY_PER_JOB)
        self.pace = float(folder.state().get("pace", 1.0))
        self.orphans = agent.welcome.jobs if agent.welcome else ()
        self._folder = folder
        self._lease: int | None = lease
        self._agent = agent
        self._book = JobBook(folder)
        self._detached = False
        self._meter = Meter(agent, self._book)
        self._mounting = Mounting(folder, self.work, self.base, self._request)
        self.offload: Offload | None = None
        # What the pool counts its leases by, see guestctl.leasing.
        self.seat: int | None = None

    @classmethod
    def connect(
        cls,
        folder: GuestDir,
        lease: int,
        *,
        timeout: float = 30.0,
        orphan: float = 60.0,
        adopt: bool = False,
    ) -> Self | None:
        """Begins a session with a guest whose lease the caller holds.

        Jobs outlive the caller by `orphan` seconds. None: commands of an earlier holder still run
        in it, and the caller does not want to `adopt` them. Raises GuestLost.
        """
        try:
            agent = Agent.connect(
                connected_socket(folder.agent),
                timeout=timeout,
                orphan=orphan,
                hangs_up=folder.spec()["channel"] == "virtio",
                orderly=folder.take_orderly(),
                starved=folder.starvation(),
            )
        except GuestLost as error:
            raise explained(folder, error) from None
        except OSError as error:
            raise explained(folder, GuestLost(str(error))) from None
        guest = cls(folder, lease, agent)
        if guest.orphans and not adopt:
            agent.close()
            return None
        try:
            guest._take_up()
        except BaseException:
            agent.close()
            raise
        return guest

    def _take_up(self) -> None:
        """Brings the guest into the state that a new holder expects it in."""
        if self.orphans:
            self._mounting.keep_leftovers()
        else:
            self._book.expire()
            self._mounting.undo_leftovers()
        if not self.board and not self._just_came():
            # Its last user may have set it, and it stands still while the host is suspended.
            now = time.time_ns().to_bytes(8, "little")
            self._request(Op.CLOCK, (Tag.CLOCK, now), timeout=_CLOCK_TIMEOUT)
        self._begin_offload()

    def _just_came(self) -> bool:
        """Whether the supervisor has set the clock a moment ago, and nobody has used it since."""
        since = self._folder.state().get("since", 0.0)
        return not self._folder.used.exists() and 0 <= time.time() - since < _SET_ENOUGH

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Ends the session and frees the guest for others; a second time does nothing.

        Commands that still run are killed, unless they were left to themselves by `detach`.
        """
        if self._lease is None:
            return
        try:
            self._meter.stop()
            if not self._detached:
                self._agent.forget_all()
                if self.orphans and self.work.mounted and not self._agent.lost:
                    # We have seen the orphan to its end; where there is another, that uses it.
                    with suppress(ShareError):
                        self._mounting.undo_leftovers()
                self._book.clear()
                with suppress(GuestLost):
                    self._agent.settle(_SETTLE_TIMEOUT)
                    if not self.board:
                        self._folder.mark_orderly()
        finally:
            if self._agent.hostile:
                self._folder.condemn(self._agent.lost)
            self._agent.close()
            if self.offload:
                self.offload.close()
            self.work.unlock()
            self.base.unlock()
            record(self._folder.journal, "release", guest=self.name)
            os.ftruncate(self._lease, 0)
            os.close(self._lease)
            self._lease = None
            if self.seat is not None:
                os.close(self.seat)
                self.seat = None

    def _begin_offload(self) -> None:
        spec = self._folder.spec()
        if spec["offload"] == "off":
            return
        # Only now: it brings much with it.
        from guestctl.offload import Offload

        self.offload = Offload(self._agent, spec)
        self.jobs = self.offload.jobs(spec["memory"])

    def detach(self) -> None:
        """Ends the session and leaves what runs to itself, for `Pool.adopt` to find."""
        self._detached = True
        self._mounting.leave()
        self._agent.close()

    def kill(self) -> None:
        """Ends the guest itself, at once: for when it does not even end a command."""
        qemu = self._folder.qemu()
        if qemu is not None:
            qemu.send(signal.SIGKILL)

    # --- the rest ---------------------------------------------------------------------------

    def sync(self) -> None:
        """Writes what the guest holds in memory to its disks and shares."""
        self._request(Op.SYNC)

    def ping(self, timeout: float = 10.0) -> float:
        """The seconds that the agent takes to answer; raises GuestLost."""
        with explaining(self._folder):
            return self._agent.ping(timeout)

    def offer(self, service: str, handler: Callable[[socket.socket], None]) -> None:
        """Offers a service of the host to processes in this guest, for as long as the lease lasts.

        A process connects to the abstract unix socket `guestctl` and writes the service's name as
        a line. `handler` runs in a thread of its own, with a socket that is the other end.
        """
        services.offer(self._agent, service.encode(), handler)

    def console_tail(self) -> str:
        """The last lines of the kernel's console."""
        return self._folder.console_tail()

    def _request(self, op: Op, *records: tuple[Tag, bytes], timeout: float = 120.0) -> None:
        with explaining(self._folder):
            self._agent.request(op, records, timeout=timeout)
