"""QEMU's command line is frozen, its confinement is real, its scratch disk leaves nothing."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from guestctl.errors import HostLacks
from guestctl.qemu.accel import acceleration
from guestctl.qemu.confine import ENVIRONMENT, Binding, confined_argv, probe_confinement
from guestctl.qemu.machine import CHANNELS, DESCRIPTORS, Machine, qemu_argv
from guestctl.qemu.monitor import MonitorError, execute
from guestctl.qemu.spawn import scratch_disk
from guestctl.sockets import bound_socket
from guestctl.spec import GuestSpec
from guestctl.targets import TARGETS


def spec(**changes: object) -> GuestSpec:
    facts: dict[str, object] = {
        "arch": "armv5l",
        "name": "g0",
        "hostname": "g0",
        "kernel": "/i/kernel",
        "initramfs": "/i/initramfs",
        "root": "/i/root",
        "dtb": "/i/dtb",
        "work": "/s/a,b",
        "base": "/s/base",
        "scratch_folder": "/s",
        "memory": 256,
        "accelerator": "tcg",
        "cpu": "arm926",
        "namespaces": True,
        **changes,
    }
    return GuestSpec(**facts)  # type: ignore[arg-type]


NUMBERS = {name: number for number, name in enumerate(DESCRIPTORS, start=3)}


def test_the_device_layout_is_frozen() -> None:
    argv = qemu_argv(Machine.of(spec()), NUMBERS)
    devices = [argv[at + 1] for at, word in enumerate(argv) if word == "-device"]
    assert devices == [
        "virtio-serial-pci,max_ports=2",
        "virtserialport,chardev=agent,name=org.guestctl.agent",
        "virtio-9p-pci,fsdev=work,mount_tag=work",
        "virtio-9p-pci,fsdev=base,mount_tag=base",
        "virtio-blk-pci,drive=root,serial=root",
        "virtio-blk-pci,drive=scratch,serial=scratch",
        "virtio-rng-pci",
    ]
    assert "-nodefaults" in argv
    assert "path=/s/a,,b" in " ".join(argv)
    assert argv[argv.index("-sandbox") + 1].count("=deny") == 4


def test_another_channel_changes_its_device_and_no_other() -> None:
    layouts = {}
    for channel in CHANNELS:
        argv = qemu_argv(Machine.of(spec(channel=channel)), NUMBERS)
        layouts[channel] = [argv[at + 1] for at, word in enumerate(argv) if word == "-device"]
    assert layouts["tcp"][0].startswith("virtio-net-pci,netdev=agent")
    assert layouts["tcp"][1:] == layouts["virtio"][2:]


def test_an_emulated_guest_loads_programs_to_the_same_addresses() -> None:
    for accelerator, told in (("tcg", True), ("kvm", False)):
        argv = qemu_argv(Machine.of(spec(accelerator=accelerator)), NUMBERS)
        assert ("norandmaps" in argv[argv.index("-append") + 1].split()) == told


def test_the_guest_dials_what_qemu_was_told() -> None:
    """guest-init/dial.c and the command line agree on addresses and names."""
    dial = (Path(__file__).parent.parent / "guest-init" / "dial.c").read_text()
    words = " ".join(" ".join(argv) for argv in CHANNELS.values())
    for told, written in (
        (r"tcp:([\d.]+):", 'HOST_ADDRESS "{}"'),
        (r"tcp:[\d.]+:(\d+)", "HOST_PORT = {},"),
        (r"mac=([\w:]+)", '"{}"'),
        (r"net=([\d.]+)\.0/24", 'OUR_ADDRESS "{}.'),
        (r"name=([\w.]+)", '"{}"'),
    ):
        found = re.search(told, words)
        assert found and written.format(found[1]) in dial


@pytest.mark.parametrize("arch", sorted(TARGETS))
def test_qemu_knows_every_targets_board_and_cpu(arch: str) -> None:
    row = TARGETS[arch]
    boards = subprocess.run([row.qemu, "-M", "help"], capture_output=True, check=True, timeout=30)
    assert f"\n{row.board} " in boards.stdout.decode()
    cpus = subprocess.run(
        [row.qemu, "-M", row.board, "-cpu", "help"], capture_output=True, check=True, timeout=30
    )
    assert row.cpu in cpus.stdout.decode()


def test_a_confined_program_sees_its_files_and_nothing_else(tmp_path: Path) -> None:
    assert probe_confinement().namespaces, "this host allows no user namespaces"
    (tmp_path / "mine").write_text("mine")
    read, write = os.pipe()
    script = "cat /guest/mine; ls /home /root /work 2>&1; ls -A /proc | grep -c '^[0-9]'"
    argv = confined_argv(
        ["sh", "-c", script],
        [Binding(str(tmp_path / "mine"), "/guest/mine")],
        network=False,
        info=write,
    )
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=30, check=False, pass_fds=[write]
    )
    os.close(write)
    os.close(read)
    assert done.stdout.startswith("mine")
    assert done.stdout.count("No such file") == 3
    # Its shell, cat's successors and nothing of the host.
    assert int(done.stdout.split()[-1]) <= 4


def test_the_scratch_disk_has_no_name(tmp_path: Path) -> None:
    os.close(scratch_disk(tmp_path, 64))
    handle = scratch_disk(tmp_path, 64)
    assert [path.name for path in tmp_path.iterdir()] == ["blank-64-1.ext4"]
    assert os.fstat(handle).st_size == 64 << 20
    argv = ["/usr/sbin/e2fsck", "-fn", f"/proc/self/fd/{handle}"]
    subprocess.run(argv, check=True, capture_output=True, timeout=60, pass_fds=[handle])
    os.close(handle)


def test_another_architecture_is_emulated(tmp_path: Path) -> None:
    best = acceleration(TARGETS["armv5l"], tmp_path, tmp_path / "kernel", tmp_path / "initramfs")
    assert (best.name, best.cpu) == ("tcg", "arm926")
    assert best.reason


def test_kvm_is_used_only_where_a_kernel_was_seen_to_boot(tmp_path: Path) -> None:
    for name in ("kernel", "initramfs"):
        (tmp_path / name).write_bytes(b"no kernel at all")
    best = acceleration(TARGETS["x86_64"], tmp_path, tmp_path / "kernel", tmp_path / "initramfs")
    assert best.name == "tcg"
    assert best.reason


def test_the_monitor_answers_and_quits(tmp_path: Path) -> None:
    with bound_socket(tmp_path / "monitor") as listening:
        qemu = subprocess.Popen(
            [
                *("qemu-system-arm", "-M", "none", "-nodefaults", "-display", "none"),
                *("-chardev", f"socket,id=m,fd={listening.fileno()},server=on,wait=off"),
                *("-mon", "chardev=m,mode=control"),
            ],
            pass_fds=[listening.fileno()],
        )
    try:
        (status,) = execute(tmp_path / "monitor", "query-status")
        assert status["status"] == "running"
        execute(tmp_path / "monitor", "quit")
        assert qemu.wait(10) == 0
    finally:
        qemu.kill()
        qemu.wait()
    with pytest.raises(MonitorError):
        execute(tmp_path / "monitor", "query-status")


def test_a_monitor_that_says_nothing_costs_its_deadline(tmp_path: Path) -> None:
    with (
        bound_socket(tmp_path / "monitor"),
        pytest.raises(MonitorError, match="within"),
    ):
        execute(tmp_path / "monitor", "query-status", timeout=0.3)


def test_no_mke2fs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "PATH", str(tmp_path))
    with pytest.raises(HostLacks) as caught:
        scratch_disk(tmp_path, 64)
    assert "e2fsprogs" in caught.value.hint
