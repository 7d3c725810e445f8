"""Starting and ending one supervisor, and with it one guest."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from guestctl.cloning import Origin
from guestctl.errors import GuestLost, PoolError, ShareError
from guestctl.handover import Handover
from guestctl.patience import MOST
from guestctl.processes import ProcessId
from guestctl.qemu.spawn import marked
from guestctl.rundir import GuestDir, PoolDir, flocked, private
from guestctl.separate import can_fork, reap, run_anew, run_forked
from guestctl.share import remove_lock, share_lock
from guestctl.sockets import bound_socket
from guestctl.spec import GuestSpec
from guestctl.tree.state import tree_state

__all__ = ["await_ready", "end_guests", "forget_share", "pool_alive", "start_guest"]

_STOP_TIMEOUT = 12.0
_REPORT_GRACE = 10.0
_LOCK_TIMEOUT = 2.0


def start_guest(
    folder: GuestDir,
    spec: GuestSpec,
    runtime: Path,
    origin: Origin,
    *,
    owner: ProcessId | None = None,
    forks: bool = False,
) -> dict[int, GuestDir]:
    """Starts one supervisor; returns the descriptor on which it will report, and its folder.

    When the `owner` ends, the guest does. With `forks` the supervisor is a fork of this process
    where that can be, see guestctl.separate.
    """
    folder.path.mkdir(mode=0o700, exist_ok=True)
    folder.write_spec(asdict(origin.given(spec)))
    with open(folder.boot_console, "wb", opener=private) as console:
        console.write(origin.console)
    in_use = _lock_share(Path(spec.work), runtime)
    report, notify = os.pipe2(os.O_CLOEXEC)
    try:
        with (
            bound_socket(folder.agent) as agent,
            bound_socket(folder.monitor) as monitor,
            open(folder.path / "supervisor.log", "wb", opener=private) as log,
        ):
            given = Handover(
                folder=str(folder.path),
                agent=agent.fileno(),
                monitor=monitor.fileno(),
                notify=notify,
                share=in_use,
                ident=origin.ident,
                pace=origin.pace,
                memory=origin.memory,
                filled=origin.filled,
                state=origin.state,
                scratch=origin.scratch,
                owner_pid=owner.pid if owner else 0,
                owner_start=owner.start if owner else 0,
            )
            begin = run_forked if forks and can_fork() and not spec.member else run_anew
            begin("guestctl.keeper" if spec.member else "guestctl.supervisor", given, log.fileno())
    except BaseException:
        os.close(report)
        raise
    finally:
        os.close(notify)
        os.close(in_use)
    return {report: folder}


def _lock_share(share: Path, runtime: Path) -> int:
    """A lock that lives as long as the supervisor that inherits it."""
    # A supervisor that was killed as it started may take a moment to be gone.
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while (handle := flocked(share_lock(share, runtime))) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if handle is None:
        raise PoolError(
            f"the share {share} is in use by another guest",
            hint="guestctl pool list shows the pools; a share belongs to one guest at a time",
        )
    # Under the lock: stage --link takes it too.
    if tree_state(share).links:
        os.close(handle)
        raise ShareError(
            f"the share {share} has links into the cache, which no guest may write to",
            hint="stage it anew without --link, into an empty folder",
        )
    return handle


def forget_share(share: Path, runtime: Path) -> None:
    """Removes what is left of a share's lock, after its guest has ended."""
    try:
        remove_lock(share_lock(share, runtime))
    except FileNotFoundError:
        # The folder itself is gone, and nobody can lock it again.
        return


def await_ready(
    waiting: dict[int, GuestDir], timeout: float, progress: Callable[[str], object]
) -> None:
    """Until every supervisor has reported; raises GuestLost at the first that failed.

    A supervisor minds `timeout` itself, by the time in which its guest could run; ours is for one
    that does not.
    """
    deadline = time.monotonic() + timeout * MOST + _REPORT_GRACE
    try:
        while waiting:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(list(waiting), [], [], left)
            if not ready:
                names = ", ".join(folder.name for folder in waiting.values())
                raise GuestLost(f"no word from the supervisors of {names}")
            for report in ready:
                folder = waiting[report]
                _check_report(folder, os.read(report, 65536))
                os.close(report)
                del waiting[report]
                progress(f"{folder.name} is ready")
    finally:
        for report in waiting:
            os.close(report)


def _check_report(folder: GuestDir, data: bytes) -> None:
    try:
        report = json.loads(data)
    except ValueError:
        log = (folder.path / "supervisor.log").read_text(errors="replace").strip()
        last = log.splitlines()[-1] if log else "it said nothing"
        raise GuestLost(f"the supervisor of {folder.name} died: {last}") from None
    if "error" in report:
        raise GuestLost(
            f"guest {folder.name} did not boot: {report['error']}",
            console=report.get("console", ""),
            hint="the console's last lines may tell more",
        )


def _processes(folder: GuestDir) -> list[ProcessId | None]:
    return [folder.supervisor(), folder.qemu()]


def _end(folder: GuestDir) -> None:
    """Ends one guest: by its supervisor, and by force where that does not answer."""
    supervisor, qemu = _processes(folder)
    if supervisor is not None:
        supervisor.send(signal.SIGTERM)
        if not supervisor.wait(_STOP_TIMEOUT):
            supervisor.send(signal.SIGKILL)
            supervisor.wait(_STOP_TIMEOUT)
    if qemu is not None and qemu.send(signal.SIGKILL):
        qemu.wait(_STOP_TIMEOUT)
    if folder.state().get("state") not in ("stopped", "lost"):
        # The supervisor did not come to say that it has ended its guest.
        _end_strays(folder)


def _end_strays(folder: GuestDir) -> None:
    """What a supervisor left that was killed as it started QEMU: bubblewrap is not bound to its
    parent's life from its first moment on, and nobody has written down its pid.
    """
    strays = marked(str(folder.path))
    for process in strays:
        process.send(signal.SIGKILL)
    for process in strays:
        process.wait(_STOP_TIMEOUT)


def end_guests(folders: list[GuestDir]) -> None:
    """Ends guests side by side."""
    for folder in folders:
        supervisor = folder.supervisor()
        if supervisor is not None:
            supervisor.send(signal.SIGTERM)
    for folder in folders:
        _end(folder)
    reap()


def pool_alive(pool: PoolDir) -> bool:
    """Whether anything of the pool runs, or somebody is bringing it up."""
    folders = pool.guests()
    if any(known and known.alive() for folder in folders for known in _processes(folder)):
        return True
    spec = pool.spec()
    creator = ProcessId(spec.get("creator_pid", 0), spec.get("creator_start", 0))
    return not folders and creator.alive()
