"""The command line of one QEMU: the fixed device layout that every image and template relies on.

The order and the options of the devices are part of the saved state of a template, so they do
not change from one guest to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guestctl.spec import GuestSpec
from guestctl.targets import Target, target

__all__ = [
    "BARE",
    "CHANNELS",
    "DESCRIPTORS",
    "SANDBOX",
    "Machine",
    "Paths",
    "Saving",
    "qemu_argv",
]

# How each QEMU of ours begins: with nothing that was not asked for. A board with a sound chip would
# look for a sound device, and load all that has to do with it.
BARE = (
    *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
    *("-audiodev", "none,id=none"),
)
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# What QEMU inherits, and what it is for.
DESCRIPTORS = ("agent", "monitor", "console", "scratch")

# How the agent's bytes travel. The guest is told of all but the first on its kernel's command line;
# guest-init/dial.c has the other end: addresses, port and hardware address are the same there.
CHANNELS: dict[str, tuple[str, ...]] = {
    "virtio": (
        # The agent's port and the one that QEMU keeps for a console. It would have 31, each with
        # two queues that every guest sets up, and every clone loads.
        *("-device", "virtio-serial-pci,max_ports=2"),
        *("-chardev", "socket,id=agent,fd={agent},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=org.guestctl.agent"),
    ),
    # A network that holds one address, behind which is the socket; nothing listens on the host.
    # Here and below `agent` is connected, to a guestctl.bridge: QEMU waits for who reads it.
    "tcp": (
        *("-chardev", "socket,id=agent,fd={agent}"),
        "-netdev",
        "user,id=agent,restrict=on,ipv6=off,net=169.254.77.0/24"
        ",guestfwd=tcp:169.254.77.100:77-chardev:agent",
        "-device",
        "virtio-net-pci,netdev=agent,mac=52:54:00:67:63:01,romfile=",
    ),
    # The board's second serial line.
    "serial": (
        *("-chardev", "socket,id=agent,fd={agent}"),
        *("-serial", "chardev:agent"),
    ),
}

# What the guest's kernel is told of each.
_TOLD = {
    "virtio": "",
    "tcp": " channel=tcp",
    "serial": " channel=serial:{tty}",
}

# And of how it is run. QEMU's translated code is for the address it was met at: a program that lies
# elsewhere each time is translated anew each time, which takes longer than running it.
_RUN_BY = {
    "tcg": " norandmaps",
    "kvm": "",
}

Saving = Literal["", "save", "load"]

# Where the guest's memory lies: QEMU's own; a file that is to be saved; a saved one, of which the
# guest gets copies of the pages that it writes to, and whose devices come through the monitor.
_MEMORY: dict[Saving, tuple[str, ...]] = {
    "": ("-machine", "{board}"),
    "save": (
        *("-machine", "{board},memory-backend=ram,suppress-vmdesc=on"),
        *("-object", "memory-backend-file,id=ram,size={memory}M,mem-path={ram},share=on"),
    ),
    "load": (
        *("-machine", "{board},memory-backend=ram,suppress-vmdesc=on"),
        *("-object", "memory-backend-file,id=ram,size={memory}M,mem-path={ram},share=off"),
        *("-incoming", "defer"),
    ),
}


@dataclass(frozen=True)
class Paths:
    """Files and folders as QEMU sees them, inside its confinement."""

    kernel: str
    initramfs: str
    root: str
    work: str
    base: str
    dtb: str | None = None


@dataclass(frozen=True)
class Machine:
    """One guest's hardware. `memory` in MiB; `accelerator` is `tcg` or `kvm`.

    `saving`: whether this guest becomes a template, or a clone of one.
    """

    target: Target
    paths: Paths
    memory: int
    accelerator: str
    cpu: str
    security_model: str = "mapped-file"
    network: bool = False
    channel: str = "virtio"
    saving: Saving = ""

    @classmethod
    def of(cls, spec: GuestSpec) -> Machine:
        """The machine that a supervisor was told to start, with the host's paths."""
        return cls(
            target=target(spec.arch),
            paths=Paths(
                kernel=spec.kernel,
                initramfs=spec.initramfs,
                root=spec.root,
                work=spec.work,
                base=spec.base,
                dtb=spec.dtb,
            ),
            memory=spec.memory,
            accelerator=spec.accelerator,
            cpu=spec.cpu,
            security_model=spec.security_model,
            network=spec.network,
            channel=spec.channel,
        )


def qemu_argv(machine: Machine, descriptors: dict[str, int]) -> list[str]:
    """The whole command line; `descriptors` names a file descriptor for each of DESCRIPTORS.

    `agent` and `monitor` are listening unix sockets, though `agent` is a connected one for every
    channel but virtio; `console` is a connected one, `scratch` an open disk image, `ram` a file for
    the memory where `saving` needs one.
    """
    target, paths = machine.target, machine.paths
    kernel_line = f"console={target.console} quiet panic=-1 {target.kernel_options}".rstrip()
    kernel_line += _RUN_BY[machine.accelerator]
    kernel_line += _TOLD[machine.channel].format(tty=target.second_line)
    argv = [target.qemu, *BARE]
    ram = f"/proc/self/fd/{descriptors.get('ram', -1)}"
    argv += [
        word.format(board=target.board, memory=machine.memory, ram=ram)
        for word in _MEMORY[machine.saving]
    ]
    argv += ["-accel", machine.accelerator, "-cpu", machine.cpu, "-m", str(machine.memory)]
    # A clone has all of this in its memory, and never boots.
    if machine.saving != "load":
        argv += ["-kernel", paths.kernel, "-initrd", paths.initramfs, "-append", kernel_line]
        argv += ["-dtb", paths.dtb] if paths.dtb else []
    argv += ["-chardev", f"socket,id=console,fd={descriptors['console']}"]
    argv += ["-serial", "chardev:console"]
    argv += ["-chardev", f"socket,id=monitor,fd={descriptors['monitor']},server=on,wait=off"]
    argv += ["-mon", "chardev=monitor,mode=control"]
    argv += [word.format(agent=descriptors["agent"]) for word in CHANNELS[machine.channel]]
    for tag, path, mode in (("work", paths.work, ""), ("base", paths.base, ",readonly=on")):
        # A comma in a path is doubled, or QEMU takes it for the next option.
        escaped = path.replace(",", ",,")
        argv += [
            "-fsdev",
            f"local,id={tag},path={escaped},security_model={machine.security_model}"
            f",multidevs=remap{mode}",
            "-device",
            f"virtio-9p-pci,fsdev={tag},mount_tag={tag}",
        ]
    argv += _disk("root", paths.root, ",read-only=on")
    argv += ["-add-fd", f"fd={descriptors['scratch']},set=1"]
    argv += _disk("scratch", "/dev/fdset/1", ",cache.no-flush=on")
    argv += ["-device", "virtio-rng-pci"]
    if machine.network:
        argv += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]
    return [*argv, "-sandbox", SANDBOX]


def _disk(name: str, path: str, options: str) -> list[str]:
    """A clone is taken for a guest from another host, for which pages of the image may be old: but
    for `drop-cache` all of it would be read anew, for all guests."""
    escaped = path.replace(",", ",,")
    return [
        "-blockdev",
        f"driver=raw,node-name={name},file.driver=file,file.filename={escaped}"
        f",file.drop-cache=off{options}",
        "-device",
        f"virtio-blk-pci,drive={name},serial={name}",
    ]
