"""Which accelerator and CPU model a target gets on this host: KVM where it works, else TCG."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from guestctl.errors import HostLacks
from guestctl.qemu.machine import BARE
from guestctl.rundir import read_json, write_json
from guestctl.targets import Target

__all__ = ["FIRST_LINE", "Acceleration", "acceleration", "qemu_program", "qemu_version"]

_KVM = "/dev/kvm"
# What guest-init says on the console before anything else.
FIRST_LINE = b"guestctl: init"
_BOOT_DEADLINE = 5.0


@dataclass(frozen=True)
class Acceleration:
    """`name` is `kvm` or `tcg`; `reason` says why it is not KVM."""

    name: str
    cpu: str
    reason: str = ""


def qemu_program(target: Target) -> str:
    """The path of the target's QEMU; raises HostLacks naming the package that has it."""
    path = shutil.which(target.qemu)
    if path is None:
        raise HostLacks(
            f"{target.qemu} is not installed", hint=f"apt-get install {target.qemu_package}"
        )
    return path


def qemu_version(target: Target) -> str:
    """The first line of `--version`."""
    done = subprocess.run(
        [qemu_program(target), "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=True,
    )
    return done.stdout.decode(errors="replace").splitlines()[0]


def acceleration(target: Target, cache: Path, kernel: Path, initramfs: Path) -> Acceleration:
    """Tries the target's KVM models in turn, by booting this kernel to its first line.

    Nothing less tells: KVM may set up a processor and then crawl, or fail at an instruction that it
    cannot emulate. What worked is remembered in `cache` for this QEMU, host kernel and image.
    """
    if not target.cpus_kvm or os.uname().machine != target.machine:
        return Acceleration("tcg", target.cpu, "the host is of another architecture")
    if not os.access(_KVM, os.R_OK | os.W_OK):
        there = "may not be opened by this user" if os.path.exists(_KVM) else "does not exist"
        return Acceleration("tcg", target.cpu, f"{_KVM} {there}")
    record = cache / "kvm.json"
    facts = Path(qemu_program(target)).stat()
    key = f"{target.arch} {facts.st_mtime_ns} {facts.st_size} {os.uname().release} {kernel}"
    known = read_json(record).get(key)
    if known is None:
        models = target.cpus_kvm
        known = next((cpu for cpu in models if _boots(target, cpu, kernel, initramfs)), "")
        cache.mkdir(parents=True, exist_ok=True)
        write_json(record, {key: known})
    if known:
        return Acceleration("kvm", str(known))
    return Acceleration("tcg", target.cpu, "no CPU model of this target boots with KVM here")


def _boots(target: Target, cpu: str, kernel: Path, initramfs: Path) -> bool:
    """Whether the kernel comes to user space under KVM, in the time that emulation would take."""
    argv = [qemu_program(target), *BARE, "-machine", target.board, "-accel", "kvm", "-cpu", cpu]
    argv += ["-m", "256", "-kernel", str(kernel), "-initrd", str(initramfs), "-serial", "stdio"]
    argv += ["-append", f"console={target.console} quiet panic=-1"]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as qemu:
        assert qemu.stdout is not None
        try:
            return _says(qemu.stdout.fileno(), FIRST_LINE, _BOOT_DEADLINE)
        finally:
            qemu.kill()


def _says(handle: int, words: bytes, seconds: float) -> bool:
    """Whether `words` come out of a descriptor in time."""
    deadline = time.monotonic() + seconds
    seen = b""
    while words not in seen:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([handle], [], [], left)[0]:
            return False
        data = os.read(handle, 4096)
        if not data:
            return False
        seen = (seen + data)[-8192:]
    return True
