"""Boots a guest, makes it ready and warm, and saves it: its memory, its devices, its scratch disk.

What guests that come out of it must not have in common is left for RENEW: nothing of the host's
seeds the random pool here, and nobody reads what the kernel draws from it once and for all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

from guestctl import events
from guestctl.agent import Agent
from guestctl.errors import GuestctlError, GuestLost
from guestctl.invocation import invocation
from guestctl.memory import write_sparse
from guestctl.mounting import MOUNT_OPTIONS, WORK
from guestctl.offload.names import STUBS
from guestctl.processes import processor_time
from guestctl.qemu.confine import Confinement
from guestctl.qemu.machine import Machine
from guestctl.qemu.monitor import Monitor
from guestctl.qemu.savedstate import without_blank
from guestctl.qemu.spawn import Running, scratch_disk, spawn
from guestctl.sockets import bound_socket, connected_socket
from guestctl.spec import GuestSpec
from guestctl.targets import target
from guestctl.template import ignore_shared, machine_to_save
from guestctl.wire import Op, Tag

__all__ = ["save"]

_SETTLE = 0.25  # until the guest has nothing left to do
_SAVE_TIMEOUT = 30.0
_STEP_TIMEOUT = 60.0
# What the first command of most guests needs is in their memory already, and not to be read anew.
_WARM = "cat /proc/swaps; ls -l . >/dev/null; /bin/sh -c true; env true"
_ROUNDS = 100
_POLL = 0.05


def save(spec: GuestSpec, aside: Path) -> float:
    """Leaves ram, state, scratch and console.log in `aside`; returns the processor seconds that
    PREPARE took.

    Raises GuestctlError and OSError.
    """
    run = aside / "run"
    for folder in (run, run / "work", run / "base"):
        folder.mkdir(mode=0o700)
    paths = replace(Machine.of(spec).paths, work=str(run / "work"), base=str(run / "base"))
    with contextlib.ExitStack() as stack:
        memory = os.memfd_create("guestctl-template", os.MFD_CLOEXEC)
        stack.callback(os.close, memory)
        os.ftruncate(memory, spec.memory << 20)
        scratch = scratch_disk(Path(spec.scratch_folder), spec.scratch)
        stack.callback(os.close, scratch)
        running = _spawned(machine_to_save(spec, paths), spec, run, memory, scratch)
        try:
            console = threading.Thread(
                target=_keep, args=(running.console, aside / "console.log"), daemon=True
            )
            console.start()
            seconds = _make_ready(spec, run / "agent", running)
            _save_state(run / "monitor", run / "state")
            running.process.wait(_SAVE_TIMEOUT)
            console.join(1)
        finally:
            running.process.kill()
            running.process.wait()
            running.console.close()
        _write_state(run / "state", aside / "state", target(spec.arch).flash)
        write_sparse(memory, aside / "ram")
        write_sparse(scratch, aside / "scratch")
    shutil.rmtree(run)
    return seconds


def _spawned(machine: Machine, spec: GuestSpec, run: Path, memory: int, scratch: int) -> Running:
    with (
        open(run / "qemu.log", "wb") as log,
        bound_socket(run / "agent") as agent,
        bound_socket(run / "monitor") as monitor,
    ):
        return spawn(
            machine,
            Confinement(spec.namespaces),
            agent=agent,
            monitor=monitor,
            scratch=scratch,
            log=log.fileno(),
            ram=memory,
        )


def _keep(connection: socket.socket, path: Path) -> None:
    with open(path, "wb", buffering=0) as log, contextlib.suppress(OSError):
        while data := connection.recv(65536):
            log.write(data)


def _make_ready(spec: GuestSpec, path: Path, running: Running) -> float:
    """Until nothing is left to do that every guest would do again, and the agent is alone."""
    agent = Agent.connect(connected_socket(path), timeout=spec.boot_timeout, orphan=0, orderly=True)
    try:
        before = processor_time(running.pid)[0]
        clock = time.time_ns().to_bytes(8, "little")
        swap = spec.swap.to_bytes(4, "little")
        agent.request(Op.PREPARE, ((Tag.CLOCK, clock), (Tag.SWAP, swap)), timeout=spec.boot_timeout)
        seconds = processor_time(running.pid)[0] - before
        place = (Tag.TARGET, WORK.encode())
        options = (Tag.OPTIONS, MOUNT_OPTIONS)
        for _ in range(_ROUNDS):
            agent.request(Op.MOUNT, ((Tag.TAG, b"work"), place, options), timeout=_STEP_TIMEOUT)
            said = _said(agent, _WARM)
            # QEMU saves no guest that has an export mounted.
            agent.request(Op.UNMOUNT, (place,), timeout=_STEP_TIMEOUT)
            if not spec.swap or b"/swap" in said:
                break
            time.sleep(_POLL)
    finally:
        agent.close()
    time.sleep(_SETTLE)
    return seconds


def _said(agent: Agent, script: str) -> bytes:
    """What a script writes to stdout; raises GuestctlError where it fails."""
    command = invocation(
        ["sh", "-ec", script],
        root=None,
        cwd=WORK,
        env=None,
        user=(0, 0),
        umask=0o022,
        limits=None,
        window=None,
        # Where the host compiles, a command is looked for among the stubs first.
        path=lambda usual: f"{os.fsdecode(STUBS)}:{usual}",
    )
    job = agent.start(command)
    agent.end_stdin(job)
    said = b""
    while True:
        match agent.take(job, _STEP_TIMEOUT):
            case None:
                raise GuestLost("a command did not end")
            case events.Output(channel=channel, data=data):
                agent.consumed(job, channel, len(data))
                said += data if channel == 1 else b""
            case events.Exited(value=0, signalled=False):
                return said
            case events.Exited() | events.NotStarted() as end:
                raise GuestctlError(f"a command failed: {end}")
            case _:
                pass


def _save_state(monitor: Path, path: Path) -> None:
    with Monitor(monitor, _SAVE_TIMEOUT) as qemu, open(path, "xb") as state:
        # Not stopped before: a guest that was saved running runs when it has been loaded.
        ignore_shared(qemu)
        # With the sandbox an `exec:` would be the end of QEMU; a descriptor is all it needs.
        qemu.ask("getfd", fdname="state", files=[state.fileno()])
        qemu.ask("migrate", uri="fd:state")
        qemu.await_status("query-migrate", "completed", ("failed", "cancelled"))
        qemu.ask("quit")


def _write_state(saved: Path, path: Path, flash: str) -> None:
    with open(path, "xb") as state:
        state.write(without_blank(saved.read_bytes(), flash))
    os.chmod(path, 0o400)
