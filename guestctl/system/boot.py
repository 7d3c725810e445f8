"""Boots a packed system in QEMU, with the console on the caller's terminal."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from guestctl import image
from guestctl.errors import UsageError
from guestctl.qemu.accel import acceleration, qemu_program
from guestctl.qemu.confine import Binding, confined_argv, probe_confinement
from guestctl.qemu.machine import BARE, SANDBOX
from guestctl.targets import Target, target

__all__ = ["BootOptions", "boot", "boot_argv"]


@dataclass(frozen=True)
class BootOptions:
    """`memory` in MiB, 0 for what suits the target; `append` goes to the kernel's command line."""

    writable: bool = False
    memory: int = 0
    append: str = ""


@dataclass(frozen=True)
class _Kind:
    """How a kind of image is given to QEMU; `magic` lies at `offset`."""

    name: str
    offset: int
    magic: bytes
    kernel_line: str


_KINDS = (
    _Kind("ext4", 1080, b"\x53\xef", "root=/dev/vda rootfstype=ext4"),
    _Kind("squashfs", 0, b"hsqs", "root=/dev/vda rootfstype=squashfs"),
    _Kind("cpio", 0, b"070701", "rdinit=/sbin/init"),
)


def boot(system: Path, arch: str, cache_dir: Path, options: BootOptions) -> int:
    """Boots `system` (ext4, squashfs or cpio) with the kernel of the image of `arch`.

    Returns QEMU's exit status when the guest has ended: it reboots or powers off, or the caller
    types Ctrl-A X. Without `writable` nothing of it changes.

    :raise UsageError: it is no such image.
    :raise ImageError: the image of `arch` is not built.
    """
    argv = boot_argv(system, arch, cache_dir, options)
    confinement = probe_confinement()
    if not confinement.namespaces:
        return subprocess.call(argv)
    made = image.load(arch, cache_dir=cache_dir)
    files = [made.kernel, *([made.dtb] if made.dtb else [])]
    bindings = [Binding(str(path.resolve()), str(path.resolve())) for path in files]
    bindings.append(Binding(str(system.resolve()), str(system.resolve()), options.writable))
    if "kvm" in argv:
        bindings.append(Binding("/dev/kvm", "/dev/kvm", device=True))
    report, info = os.pipe()
    try:
        confined = confined_argv(argv, bindings, network=False, info=info)
        with subprocess.Popen(confined, pass_fds=[info]) as process:
            return process.wait()
    finally:
        os.close(report)
        os.close(info)


def boot_argv(system: Path, arch: str, cache_dir: Path, options: BootOptions) -> list[str]:
    """QEMU's command line for that, without its confinement."""
    row = target(arch)
    kind = _kind_of(system)
    made = image.load(arch, cache_dir=cache_dir)
    best = acceleration(row, cache_dir, made.kernel, made.initramfs)
    mode = "rw" if options.writable else "ro"
    line = f"console={row.console} panic=-1 {row.kernel_options} {kind.kernel_line} {mode}"
    argv = [qemu_program(row), *BARE]
    argv += ["-machine", row.board, "-accel", best.name, "-cpu", best.cpu]
    argv += ["-m", str(_memory(row, options.memory))]
    argv += ["-kernel", str(made.kernel.resolve()), "-append", f"{line} {options.append}".strip()]
    argv += ["-dtb", str(made.dtb.resolve())] if made.dtb else []
    argv += ["-serial", "mon:stdio", "-device", "virtio-rng-pci"]
    argv += _disk(system, kind, options.writable)
    return [*argv, "-sandbox", SANDBOX]


def _kind_of(system: Path) -> _Kind:
    try:
        with open(system, "rb") as file:
            head = file.read(2048)
    except OSError as error:
        raise UsageError(f"{system}: {error.strerror}") from None
    for kind in _KINDS:
        if head[kind.offset :].startswith(kind.magic):
            return kind
    raise UsageError(
        f"{system} is neither ext4, squashfs nor cpio",
        hint="guestctl system pack ROOTFS.tar OUT --format ext4 makes one",
    )


def _memory(row: Target, asked: int) -> int:
    if asked > row.memory_max:
        raise UsageError(f"{row.board} has at most {row.memory_max} MiB of memory")
    return asked or row.memory


def _disk(system: Path, kind: _Kind, writable: bool) -> list[str]:
    path = str(system.resolve())
    if kind.name == "cpio":
        return ["-initrd", path]
    escaped = path.replace(",", ",,")
    mode = "off" if writable else "on"
    return [
        "-blockdev",
        f"driver=raw,node-name=system,file.driver=file,file.filename={escaped},read-only={mode}",
        "-device",
        "virtio-blk-pci,drive=system",
    ]
