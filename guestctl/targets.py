"""What QEMU must know of each target: one row a target, and no `if arch ==` anywhere else."""

from __future__ import annotations

from dataclasses import dataclass

from guestctl.errors import UsageError

__all__ = ["TARGETS", "Target", "target"]


@dataclass(frozen=True)
class Target:
    """One architecture on one board.

    `cpus_kvm` are CPU models to try under KVM, best first; empty where the host can never
    accelerate this target. `memory` and `memory_max` are in MiB.
    """

    arch: str
    machine: str  # what `uname -m` says in the guest
    qemu: str  # the QEMU program
    qemu_package: str  # the Debian package that holds it
    board: str
    cpu: str  # the CPU model under TCG
    console: str
    second_line: str  # what the kernel calls the serial line beside the console
    memory: int
    memory_max: int
    cpus_kvm: tuple[str, ...] = ()
    elf_machine: int = 0  # e_machine of its programs
    elf_class: int = 32
    elf_flags: int = 0  # e_flags of its programs, as far as elf_flags_mask goes
    elf_flags_mask: int = 0
    triplets: str = ""  # a pattern of the triplets that compilers of this target may have
    oci: str = ""  # what OCI calls it
    oci_variant: str = ""
    kernel_options: str = ""  # what this board's kernel should be told beside the console
    flash: str = ""  # what QEMU calls memory that the board has besides, and nobody writes to
    # Processor seconds that PREPARE takes where the project measures; 0: not known.
    prepare_seconds: float = 0.0


_ROWS = (
    Target(
        arch="armv5l",
        machine="armv5tejl",
        qemu="qemu-system-arm",
        qemu_package="qemu-system-arm",
        board="versatilepb",
        cpu="arm926",
        console="ttyAMA0",
        second_line="ttyAMA1",
        memory=256,
        memory_max=256,
        elf_machine=40,
        elf_class=32,
        elf_flags=0x05000000,  # version 5 of the EABI; floats are not passed in registers
        elf_flags_mask=0xFF000400,
        triplets=r"arm(el|v[45][a-z]*)?(-[a-z0-9_]+)?-linux-(gnu|musl|uclibc)?eabi",
        oci="arm",
        oci_variant="v5",
        # Measuring the delay loop takes 84 ms of a boot; no driver here needs it exact.
        kernel_options="lpj=5000000",
        flash="versatile.flash",
        prepare_seconds=0.06,
    ),
    Target(
        arch="x86_64",
        machine="x86_64",
        qemu="qemu-system-x86_64",
        qemu_package="qemu-system-x86",
        board="q35",
        cpu="qemu64",
        console="ttyS0",
        second_line="ttyS1",
        memory=512,
        memory_max=16384,
        cpus_kvm=("host", "host,-arch-capabilities", "EPYC", "kvm64"),
        prepare_seconds=0.065,
        elf_machine=62,
        elf_class=64,
        triplets=r"(x86_64|amd64)(-[a-z0-9_]+)?-linux-(gnu|musl|uclibc)",
        oci="amd64",
    ),
)

TARGETS: dict[str, Target] = {row.arch: row for row in _ROWS}


def target(arch: str) -> Target:
    """Returns the row of `arch`; raises UsageError with the names of those there are."""
    try:
        return TARGETS[arch]
    except KeyError:
        known = ", ".join(sorted(TARGETS))
        raise UsageError(f"unknown architecture {arch!r}", hint=f"known are {known}") from None
