"""What a pool will be made of, decided before anything is started."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

from guestctl import catalog, resources
from guestctl.errors import HostLacks, PoolError, UsageError
from guestctl.places import Places
from guestctl.qemu.accel import acceleration, qemu_program
from guestctl.qemu.confine import known_confinement, namespaces_depend_on
from guestctl.qemu.machine import CHANNELS
from guestctl.remembered import remembered, stamp
from guestctl.share import check_share
from guestctl.spec import DEVICE, OFFLOAD_MODES, GuestSpec
from guestctl.targets import target

__all__ = [
    "NOT_OFFLOADED",
    "Plan",
    "PoolOptions",
    "available_memory",
    "base_of",
    "ledger_path",
    "make_trees",
    "need_of",
    "own_shares",
    "plan_pool",
]

NOT_OFFLOADED = "nothing is offloaded"  # how the remark begins that says why

_OVERHEAD = 64  # MiB of host memory that a QEMU takes beside its guest's
# QEMU's own, and what the guest holds open in its share.
_FILES_LEAST = 256
_SCRATCH_LEAST = 1536  # MiB; its swap takes 1,024
_SECURITY_MODELS = ("mapped-file", "mapped-xattr")


@dataclass(frozen=True)
class PoolOptions:
    """What a pool is made from. `memory` in MiB, `boot_timeout` in seconds.

    `share` is a parent folder that holds one tree per guest; without it the pool makes trees of
    its own, in the cache, which go when it goes.
    """

    arch: str
    size: int = 1
    share: str | None = None
    memory: int | None = None
    # Of each guest's scratch disk, in MiB: as much of the host's disk it may come to take.
    scratch: int = 16384
    security_model: str = "mapped-file"
    network: bool = False
    channel: str = "virtio"
    boot_timeout: float = 120.0
    # Whether the host compiles for the guests: auto, distcc or off.
    offload: str = "auto"
    # Its guests boot, even where there is a template to clone.
    cold: bool = False
    # Boards that belong to the pool, as HOST, HOST:PORT or serial:DEV@RATE, and the file with the
    # key of those in the network. A serial device as the channel stands for a pool of that board
    # alone.
    members: tuple[str, ...] = ()
    key: str = ""
    # The id of the image; without one it is today's.
    image: str = ""
    # How many guests that nobody has used are kept for fresh leases; None: see guestctl.spares.
    spares: int | None = None
    # Exactly this folder is the share of the only guest.
    single: bool = False


@dataclass(frozen=True)
class Plan:
    """`image` is an id; `remarks` says what is slower or less confined than it might be."""

    guests: tuple[GuestSpec, ...]
    image: str
    remarks: tuple[str, ...]


def ledger_path(places: Places, name: str) -> Path:
    """The ledger of pool `name`, which outlives it."""
    return places.cache / "ledgers" / f"{name}.jsonl"


def own_shares(cache: Path, name: str) -> Path:
    """The folder of the shares that pool `name` makes itself."""
    return cache / "shares" / name


def base_of(own: Path, guest: str) -> Path:
    """The folder that a guest has as its read-only export."""
    return own / f"{guest}.base"


def need_of(memory: int) -> int:
    """MiB of the host that a guest with so many may come to take."""
    return memory + _OVERHEAD


def plan_pool(options: PoolOptions, name: str, places: Places) -> Plan:
    """Checks the options against this host, and settles each guest's hardware; `make_trees` makes
    the shares.

    Raises UsageError, HostLacks, ImageError, ShareError and PoolError.
    """
    if options.channel.startswith(DEVICE):
        return _pool_of_a_device(options, own_shares(places.cache, name))
    row = target(options.arch)
    memory = row.memory if options.memory is None else options.memory
    _check(options, memory, row.memory_max)
    qemu_program(row)
    if options.image:
        made = catalog.find(options.arch, options.image, cache_dir=places.cache)
    else:
        made = catalog.load(options.arch, cache_dir=places.cache)
    best = acceleration(row, places.cache, made.kernel, made.initramfs)
    confinement = known_confinement(places.cache)
    own = own_shares(places.cache, name)
    no_offload = _why_no_offload(options, best.name, places)
    guests = []
    for number, work in enumerate(_work_trees(options, own)):
        guests.append(
            GuestSpec(
                arch=options.arch,
                name=f"g{number}",
                hostname=f"g{number}",
                kernel=str(made.kernel),
                initramfs=str(made.initramfs),
                root=str(made.root),
                dtb=str(made.dtb) if made.dtb else None,
                work=str(work),
                base=str(base_of(own, f"g{number}")),
                scratch_folder=str(places.cache / "scratch"),
                memory=memory,
                scratch=options.scratch,
                accelerator=best.name,
                cpu=best.cpu,
                namespaces=confinement.namespaces,
                unconfined_reason=confinement.reason,
                security_model=options.security_model,
                network=options.network,
                channel=options.channel,
                boot_timeout=options.boot_timeout,
                offload="off" if no_offload else options.offload,
                offload_reason=no_offload,
                cache=str(places.cache),
                runtime=str(places.runtime),
                config=str(places.config),
                ledger=str(ledger_path(places, name)),
            )
        )
    guests += _boards(options, options.members, own, first=options.size)
    remarks = []
    if row.cpus_kvm and best.name != "kvm":
        remarks.append(f"emulated, without KVM: {best.reason}")
    if not confinement.namespaces:
        remarks.append(f"QEMU has no namespaces of its own: {confinement.reason}")
    if no_offload and options.offload != "off" and best.name == "tcg":
        remarks.append(f"{NOT_OFFLOADED}: {no_offload}")
    return Plan(tuple(guests), made.id, tuple(remarks))


def _pool_of_a_device(options: PoolOptions, own: Path) -> Plan:
    """No guest at all: the machine behind a serial device, and other members if there are any."""
    target(options.arch)
    if options.size != 1 or options.share is not None:
        raise UsageError(
            f"behind {options.channel} is one machine, without a share",
            hint="leave -n and --share out; --member adds others",
        )
    return Plan(tuple(_boards(options, (options.channel, *options.members), own)), "", ())


def _boards(
    options: PoolOptions, members: tuple[str, ...], own: Path, first: int = 0
) -> list[GuestSpec]:
    """The members that are no guests: they have an agent, and nothing else of ours."""
    found = []
    for number, member in enumerate(members, start=first):
        host, address = _address(member, options.key)
        name = f"g{number}"
        found.append(
            GuestSpec(
                arch=options.arch,
                name=name,
                hostname=host,
                kernel="",
                initramfs="",
                root="",
                dtb=None,
                work=str(own / name),
                base=str(base_of(own, name)),
                scratch_folder="",
                memory=0,
                accelerator="none",
                cpu="",
                namespaces=False,
                unconfined_reason="a board",
                channel="board",
                offload_reason="a board",
                member=address,
                key=str(Path(options.key).resolve()) if options.key else "",
            )
        )
    return found


def _address(member: str, key: str) -> tuple[str, str]:
    """A board's name, and its address in full; raises UsageError, BoardError."""
    if member.startswith(DEVICE):
        from guestctl.device import DeviceAddress  # which most pools have no use for

        device = DeviceAddress.parse(member)
        return device.path, str(device)
    from guestctl.board import read_key, split_address

    if not key:
        raise UsageError("boards need a key", hint="--key FILE; guestctl agent key FILE makes one")
    read_key(Path(key))
    host, port = split_address(member)
    return host, f"{host}:{port}"


def _why_no_offload(options: PoolOptions, accelerator: str, places: Places) -> str:
    """Empty when the host can compile for these guests; HostLacks when it was asked to, and cannot.

    Where the guest is as fast as the host, nothing is to be gained.
    """
    if options.offload == "auto" and accelerator != "tcg":
        return "the guests run at the host's speed"
    reason = _why_off(options.offload, options.arch, places.cache)
    if reason and options.offload == "distcc":
        raise HostLacks(f"nothing can be offloaded: {reason}")
    return reason


def _why_off(mode: str, arch: str, cache: Path) -> str:
    """As guestctl.offload says it, which takes time; that nothing is in the way is remembered."""
    if mode == "off":
        return "not asked for"

    def find() -> str:
        from guestctl.offload import why_off

        return why_off(mode, arch, cache)

    toolchains = sorted(path.name for path in (cache / "steps").glob(f"toolchain-{arch}-*"))
    depends = [toolchains, stamp(resources.host_view()), namespaces_depend_on()]
    # Without a toolchain nobody has asked for more than that.
    return str(
        remembered(
            cache, f"offload for {arch}", depends, find, keep=lambda why: not (why and toolchains)
        )
    )


def _work_trees(options: PoolOptions, own: Path) -> list[Path]:
    """The folder that each guest will see at /work."""
    parent = own if options.share is None else check_share(Path(options.share))
    if options.share is not None and options.single:
        return [parent]
    return [parent / f"g{number}" for number in range(options.size)]


def make_trees(plan: Plan) -> None:
    """Makes the folders that the guests export, where they are missing; raises ShareError."""
    for spec in plan.guests:
        for tree in (Path(spec.work), Path(spec.base)):
            tree.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_share(tree)


def _check(options: PoolOptions, memory: int, most: int) -> None:
    """Raises UsageError or PoolError for what cannot work."""
    if options.spares is not None and options.spares < 0:
        raise UsageError(f"a pool has 0 spares or more, not {options.spares}")
    if options.size < 1:
        raise UsageError(f"a pool has at least one guest, not {options.size}", hint="-n 1, or more")
    for what, given, known in (
        ("security model", options.security_model, _SECURITY_MODELS),
        ("channel", options.channel, tuple(CHANNELS)),
    ):
        if given not in known:
            raise UsageError(f"unknown {what} {given!r}", hint=f"known are {', '.join(known)}")
    if options.offload not in OFFLOAD_MODES:
        raise UsageError(
            f"unknown way to offload {options.offload!r}",
            hint=f"known are {', '.join(OFFLOAD_MODES)}",
        )
    if not 64 <= memory <= most:
        raise UsageError(f"a guest of {options.arch} takes 64 to {most} MiB, not {memory}")
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= most_files < _FILES_LEAST:
        raise HostLacks(
            f"too many open files would be needed: this user's limit is {most_files}",
            hint=f"raise the hard limit of open files to {_FILES_LEAST} or more",
        )
    if options.scratch < _SCRATCH_LEAST:
        raise UsageError(
            f"a guest's scratch disk has at least {_SCRATCH_LEAST} MiB, not {options.scratch}"
        )
    needed = (options.size + (options.spares or 0)) * need_of(memory)
    there = available_memory()
    if needed > there:
        raise PoolError(
            f"{options.size} guests need {needed} MiB of memory, and {there} MiB are available",
            hint=f"at most {max(0, there // need_of(memory))} fit",
        )


def available_memory() -> int:
    """MiB that processes may still take."""
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["MemAvailable"].split()[0]) >> 10
