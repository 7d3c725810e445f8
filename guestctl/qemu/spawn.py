"""Starts a QEMU: its scratch disk, its sockets, its confinement."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from guestctl.errors import GuestctlError, HostLacks
from guestctl.processes import ProcessId, children, started_with
from guestctl.qemu.accel import qemu_program
from guestctl.qemu.confine import ENVIRONMENT, Binding, Confinement, confined_argv
from guestctl.qemu.machine import Machine, Paths, qemu_argv

__all__ = [
    "Running",
    "command_line",
    "copy_disk",
    "empty_disk",
    "marked",
    "scratch_disk",
    "spawn",
]

_INSIDE = "/guest"
_INFO_TIMEOUT = 10.0
# The disk never outlives its guest: no journal, and no checksums, which cost most when emulated.
_FORMAT_VERSION = 1
_MKE2FS = (
    *("-q", "-F", "-t", "ext4", "-m", "0"),
    *("-O", "^has_journal,^metadata_csum,uninit_bg"),
    *("-E", "assume_storage_prezeroed=1"),
)
_MARK = "GUESTCTL_GUEST"


@dataclass
class Running:
    """A QEMU that has been started. `process` is QEMU, or the bubblewrap that holds it; `pid` is
    always QEMU's."""

    process: subprocess.Popen[bytes]
    console: socket.socket
    pid: int


def empty_disk(folder: Path, mebibytes: int) -> int:
    """A descriptor of a new sparse file that has no name, and so leaves nothing behind."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(handle, mebibytes << 20)
    except BaseException:
        os.close(handle)
        raise
    return handle


def scratch_disk(folder: Path, mebibytes: int) -> int:
    """The same with an ext4 in it: a copy of a blank one in `folder`, formatted the first time,
    since that is quicker.
    """
    handle = empty_disk(folder, mebibytes)
    try:
        with open(_blank(folder, mebibytes), "rb") as blank:
            copy_disk(blank.fileno(), handle)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _blank(folder: Path, mebibytes: int) -> Path:
    blank = folder / f"blank-{mebibytes}-{_FORMAT_VERSION}.ext4"
    if not blank.exists():
        _format(blank, mebibytes)
    return blank


def copy_disk(source: int, target: int) -> None:
    """Copies what is not a hole, to the same places."""
    at, size = 0, os.fstat(source).st_size
    while at < size:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(source, begin, os.SEEK_HOLE)
        while begin < at:
            begin += os.copy_file_range(source, target, at - begin, begin, begin)


def _format(blank: Path, mebibytes: int) -> None:
    """Makes an empty ext4 image under its name at once, so that no half of one is ever copied."""
    mke2fs = shutil.which("mke2fs", path=ENVIRONMENT["PATH"])
    if mke2fs is None:
        raise HostLacks("mke2fs is not installed", hint="apt-get install e2fsprogs")
    aside = blank.with_name(f".{blank.name}.{os.getpid()}")
    try:
        with open(aside, "xb") as file:
            file.truncate(mebibytes << 20)
        done = subprocess.run(
            [mke2fs, *_MKE2FS, str(aside)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            text = done.stderr.decode(errors="replace").strip()
            raise GuestctlError(f"cannot format the scratch disk: {text}")
        os.replace(aside, blank)
    finally:
        aside.unlink(missing_ok=True)


def command_line(
    machine: Machine,
    confinement: Confinement,
    descriptors: dict[str, int],
    info: int,
    mark: str = "",
) -> list[str]:
    """The argv that starts `machine`, whose paths are the host's; `info` is for confined_argv."""
    if not confinement.namespaces:
        return qemu_argv(machine, descriptors)
    paths = machine.paths
    bindings = [
        Binding(paths.kernel, f"{_INSIDE}/kernel"),
        Binding(paths.initramfs, f"{_INSIDE}/initramfs"),
        Binding(paths.root, f"{_INSIDE}/root"),
        Binding(paths.work, f"{_INSIDE}/work", writable=True),
        Binding(paths.base, f"{_INSIDE}/base"),
    ]
    if paths.dtb:
        bindings.append(Binding(paths.dtb, f"{_INSIDE}/dtb"))
    if machine.accelerator == "kvm":
        bindings.append(Binding("/dev/kvm", "/dev/kvm", device=True))
    inside = {binding.inside.rsplit("/", 1)[1]: binding.inside for binding in bindings}
    seen = replace(
        machine,
        paths=Paths(
            kernel=inside["kernel"],
            initramfs=inside["initramfs"],
            root=inside["root"],
            work=inside["work"],
            base=inside["base"],
            dtb=inside.get("dtb"),
        ),
    )
    return confined_argv(
        qemu_argv(seen, descriptors),
        bindings,
        network=machine.network,
        info=info,
        environment={**ENVIRONMENT, _MARK: mark},
    )


def spawn(
    machine: Machine,
    confinement: Confinement,
    *,
    agent: socket.socket,
    monitor: socket.socket,
    scratch: int,
    log: int,
    ram: int = -1,
    state: int = -1,
    mark: str = "",
    meanwhile: Callable[[], None] = lambda: None,
) -> Running:
    """Starts QEMU; its own messages go to descriptor `log`. Raises HostLacks without a QEMU.

    `ram` and `state` are for a template or a clone of one, see guestctl.template. By `mark` those
    who know no pid find what was started, see `marked`. `meanwhile` is called while bubblewrap
    makes the namespaces.
    """
    qemu_program(machine.target)
    ours, theirs = socket.socketpair()
    descriptors = {
        "agent": agent.fileno(),
        "monitor": monitor.fileno(),
        "console": theirs.fileno(),
        "scratch": scratch,
    }
    if ram >= 0:
        descriptors["ram"] = ram
    if state >= 0:
        descriptors["state"] = state
    read_info, write_info = os.pipe2(os.O_CLOEXEC)
    argv = command_line(machine, confinement, descriptors, write_info, mark)
    process = None
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[*sorted(descriptors.values()), write_info],
            env={**ENVIRONMENT, _MARK: mark},
        )
        os.close(write_info)
        write_info = -1
        meanwhile()
        pid = _pid_of_confined(read_info) if confinement.namespaces else process.pid
    except BaseException:
        ours.close()
        if process is not None:
            process.kill()
            process.wait()
        raise
    finally:
        theirs.close()
        os.close(read_info)
        if write_info >= 0:
            os.close(write_info)
    return Running(process, ours, pid)


def marked(mark: str) -> list[ProcessId]:
    """What `spawn` has started with this mark, and still runs: bubblewrap as well as QEMU."""
    return started_with(f"{_MARK}={mark}")


def _pid_of_confined(info: int) -> int:
    """QEMU's pid by what bubblewrap says, or 0 when it ended before it said anything."""
    text = b""
    while select.select([info], [], [], _INFO_TIMEOUT)[0] and (data := os.read(info, 4096)):
        text += data
    try:
        first = ProcessId.of(int(json.loads(text)["child-pid"]))
    except (ValueError, KeyError, ProcessLookupError):
        return 0
    deadline = time.monotonic() + _INFO_TIMEOUT
    while first.alive() and time.monotonic() < deadline:
        found = children(first.pid)
        if found:
            return found[0]
        time.sleep(0.0005)  # nothing tells of a fork in another process
    return 0
