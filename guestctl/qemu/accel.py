"""Which accelerator and CPU model a target gets on this host: KVM where it works, else TCG."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from guestctl.errors import HostLacks
from guestctl.rundir import read_json, write_json
from guestctl.targets import Target

__all__ = ["Acceleration", "acceleration", "qemu_program", "qemu_version"]

_KVM = "/dev/kvm"


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


def acceleration(target: Target, cache: Path) -> Acceleration:
    """Tries the target's KVM models in turn, on real machines that are never started.

    KVM's own errors show only when QEMU sets up a processor, so nothing less tells. What worked is
    remembered in `cache` for this QEMU and this kernel.
    """
    tcg = Acceleration("tcg", target.cpu)
    if not target.cpus_kvm or platform.machine() != target.machine:
        return Acceleration("tcg", target.cpu, "the host is of another architecture")
    if not os.access(_KVM, os.R_OK | os.W_OK):
        there = "may not be opened by this user" if os.path.exists(_KVM) else "does not exist"
        return Acceleration("tcg", target.cpu, f"{_KVM} {there}")
    record = cache / "kvm.json"
    facts = Path(qemu_program(target)).stat()
    key = f"{target.arch} {facts.st_mtime_ns} {facts.st_size} {platform.release()}"
    known = read_json(record).get(key)
    if known is None:
        known = next((cpu for cpu in target.cpus_kvm if _works(target, cpu)), "")
        cache.mkdir(parents=True, exist_ok=True)
        write_json(record, {key: known})
    if known:
        return Acceleration("kvm", str(known))
    return Acceleration(tcg.name, tcg.cpu, "no CPU model of this target works with KVM here")


def _works(target: Target, cpu: str) -> bool:
    """Whether QEMU can set up a KVM machine with this CPU model."""
    argv = [qemu_program(target), "-nodefaults", "-no-user-config", "-display", "none", "-S"]
    argv += ["-machine", target.board, "-accel", "kvm", "-cpu", cpu, "-qmp", "stdio"]
    commands = b'{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'
    try:
        done = subprocess.run(argv, input=commands, capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
