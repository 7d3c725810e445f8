"""What a guest cannot reach, tried from inside it, and what a QEMU that a guest has broken would
find. docs/security.md says what holds where there are no namespaces.
"""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestctl import Guest, Pool
from guestctl.image import Image
from guestctl.places import Places
from guestctl.qemu.confine import Confinement
from guestctl.qemu.machine import DESCRIPTORS, Machine
from guestctl.qemu.spawn import command_line
from guestctl.rundir import GuestDir
from guestctl.share import share_lock
from guestctl.spec import GuestSpec

SECRET = b"for nobody's eyes"


@pytest.fixture(scope="module")
def two(armv5l_image: Image, places: Places) -> Iterator[Pool]:
    with Pool("armv5l", 2, places=places) as made:
        yield made


@pytest.fixture
def guest(two: Pool) -> Iterator[Guest]:
    with two.lease(60) as leased:
        yield leased


def said(guest: Guest, script: str, **options: object) -> str:
    return guest.run(["sh", "-c", script], timeout=60, **options).stdout.decode()


def test_there_is_no_network_to_reach_anybody_by(two: Pool, guest: Guest) -> None:
    devices = said(guest, "tail -n +3 /proc/net/dev | cut -d: -f1").split()
    assert devices == ["lo"]
    # No address of the host's, of another guest's, or of anybody's is routed to.
    script = "perl -MSocket -e 'for (@ARGV) { socket(S, AF_INET, SOCK_STREAM, 0) or die; "
    script += (
        "print connect(S, pack_sockaddr_in(22, inet_aton($_))) ? 1 : 0, $!{ENETUNREACH} ? 1 : 0 }'"
    )
    assert said(guest, f"{script} 10.0.2.2 10.0.2.3 169.254.77.100 8.8.8.8") == "01010101"
    families = "perl -e 'print socket(S, 40, 1, 0) ? 1 : 0'"  # vsock
    assert said(guest, families) == "0"


def test_no_device_but_those_of_the_layout(guest: Guest) -> None:
    """Nothing of the host's comes with -nodefaults: no sound, display, CD, floppy or USB."""
    listed = said(guest, "cat /sys/bus/pci/devices/*/vendor | sort | uniq -c").split()
    assert listed[1::2] == ["0x1af4"] or set(listed[1::2]) <= {"0x1af4", "0x10ee"}
    disks = said(guest, "cat /proc/partitions | tail -n +3 | awk '{print $4}'").split()
    assert disks == ["vda", "vdb"]


@pytest.mark.parametrize("way", ["/work/..", "/work/link", "/work/dir/link/link"])
def test_paths_of_the_share_lead_to_nothing_of_the_hosts(guest: Guest, way: str) -> None:
    secret = guest.work.path.parent / "secret"
    secret.write_bytes(SECRET)
    try:
        with guest.mounted():
            made = f"mkdir -p dir; ln -sfn {guest.work.path.parent} link; ln -sfn / dir/link"
            said(guest, made, cwd="/work")
            listed = said(guest, f"cat {way}/secret {way}{secret} 2>/dev/null; ls {way}")
            assert SECRET.decode() not in listed
            assert "secret" not in listed.split()
            said(guest, "rm -rf /work/*")
    finally:
        secret.unlink()


def test_a_device_node_in_the_share_is_a_file_of_the_users(guest: Guest) -> None:
    """The guest's root makes devices; on the host they are empty files, and lead to no device."""
    with guest.mounted():
        said(guest, "mknod disk b 8 0; mknod mem c 1 1; chmod 4777 mem", cwd="/work")
    for name in ("disk", "mem"):
        info = (guest.work.path / name).lstat()
        assert stat.S_ISREG(info.st_mode) and not info.st_size
        assert stat.S_IMODE(info.st_mode) == 0o600
        assert info.st_uid == os.getuid()


def test_the_base_cannot_be_written_by_the_guest(two: Pool, guest: Guest) -> None:
    (guest.base.path / "file").write_bytes(b"x")
    try:
        script = """
            mkdir -p /tmp/base
            mount -t 9p -o version=9p2000.L,trans=virtio base /tmp/base && cat /tmp/base/file; echo
            (echo y >/tmp/base/file); rm /tmp/base/file; touch /tmp/base/new; (: >/tmp/base/file)
            chmod 777 /tmp/base/file; ls /tmp/base; umount /tmp/base
        """
        assert said(guest, script).split() == ["x", "file"]
        assert (guest.base.path / "file").read_bytes() == b"x"
    finally:
        (guest.base.path / "file").unlink()


def test_a_scratch_disk_is_as_large_as_it_was_told_to_be(
    armv5l_image: Image, places: Places
) -> None:
    """The quota: a disk of so many MiB, whatever the guest writes behind its end."""
    with Pool("armv5l", 1, places=places, scratch=2048) as pool, pool.lease(60) as guest:
        blocks = int(said(guest, "cat /sys/block/vdb/size"))
        assert blocks == 2048 << 11
        beyond = f"dd if=/dev/zero of=/dev/vdb bs=512 seek={blocks} count=8 2>&1"
        assert "0+0 records out" in said(guest, beyond) or "No space left" in said(guest, beyond)
        known = pool.guest_folder("g0").qemu()
        assert known is not None
        sizes = {
            path.stat().st_size
            for path in Path(f"/proc/{known.pid}/fd").iterdir()
            if "scratch" in os.readlink(path) and "(deleted)" in os.readlink(path)
        }
        assert sizes == {2048 << 20}


# --- a QEMU that a guest has broken ---------------------------------------------------------


def in_its_place(folder: GuestDir, script: str) -> subprocess.CompletedProcess[str]:
    """Runs a script where QEMU would run: the same files, namespaces and rights."""
    spec = GuestSpec(**folder.spec())
    read, write = os.pipe()
    try:
        descriptors = dict.fromkeys(DESCRIPTORS, 0)
        argv = command_line(Machine.of(spec), Confinement(True), descriptors, write)
        return subprocess.run(
            [*argv[: argv.index("--") + 1], "sh", "-c", script],
            pass_fds=[write], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(read)
        os.close(write)


def test_what_qemu_could_reach(two: Pool, places: Places) -> None:
    """A script in the place of the first guest's QEMU looks for the second, and for the user."""
    first, second = two._dir.guests()
    victim = second.qemu()
    assert victim is not None
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("\0guestctl-another-user")
    listening.listen()
    served = socket.create_server(("127.0.0.1", 0))
    port = served.getsockname()[1]
    script = f"""
        echo files: $(ls /guest)
        echo home: $(ls -a /home /root {Path.home()} 2>/dev/null)
        echo run: $(ls -a {second.path} {places.runtime} /run 2>/dev/null)
        echo shares: $(ls {second.spec()["work"]} {places.cache} 2>/dev/null)
        echo secrets: $(cat /etc/passwd /etc/hostname {second.agent} 2>/dev/null)
        echo net: $(tail -n +3 /proc/net/dev | cut -d: -f1)
        echo sockets: $(grep -c another-user /proc/net/unix)
        echo port: $(perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0);
            print connect(S, pack_sockaddr_in({port}, INADDR_LOOPBACK)) ? 1 : 0')
        echo killed: $(kill -9 {victim.pid} 2>/dev/null && echo yes)
        echo wrote: $(for f in /guest/kernel /guest/root /guest/base/x /usr/x /etc/x/y; do
            (echo >$f) 2>/dev/null && echo $f; done)
    """
    try:
        done = in_its_place(first, script)
    finally:
        listening.close()
        served.close()
    assert done.returncode == 0, done
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines())
    found = {name: text.split() for name, text in lines.items()}
    assert set(found.pop("files")) <= {"base", "dtb", "initramfs", "kernel", "root", "work"}
    assert found.pop("net") == ["lo"]
    assert (found.pop("sockets"), found.pop("port")) == (["0"], ["0"])
    assert set(found) == {"home", "run", "shares", "secrets", "killed", "wrote"}
    assert not any(found.values()), found
    assert victim.alive()


def test_a_qemu_that_runs_has_that_view(two: Pool) -> None:
    """By its mounts: nothing of the host's is writable but its own share."""
    first = two._dir.guests()[0]
    known = first.qemu()
    assert known is not None
    writable = set()
    for line in Path(f"/proc/{known.pid}/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        _id, _parent, _device, root, target, options, *_ = fields.split()
        kind = rest.split()[0]
        if "rw" in options.split(",") and kind not in ("tmpfs", "proc", "devpts", "devtmpfs"):
            writable.add((root.rsplit("/", 2)[-2:][-1], target))
    assert writable == {("g0", "/guest/work")}
    for name in ("net", "mnt", "pid", "ipc", "uts", "user"):
        ours, theirs = (os.readlink(f"/proc/{who}/ns/{name}") for who in ("self", known.pid))
        assert ours != theirs, name


def test_qemu_is_bounded_and_may_start_nothing(two: Pool) -> None:
    known = two._dir.guests()[0].qemu()
    assert known is not None
    limits = {
        line[:26].strip(): line[26:].split()
        for line in Path(f"/proc/{known.pid}/limits").read_text().splitlines()
    }
    assert limits["Max core file size"][0] == "0"
    memory = two._dir.guests()[0].spec()["memory"]
    assert int(limits["Max address space"][1]) <= (memory + 6144) << 20
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{known.pid}/status").read_text().splitlines()
    )
    assert status["Seccomp"].strip() == "2"
    assert status["NoNewPrivs"].strip() == "1"
    assert int(status["CapEff"], 16) == 0


# --- other users of the host ----------------------------------------------------------------


def test_all_of_a_pool_is_the_users_alone(two: Pool, places: Places) -> None:
    """Folders 0700, sockets, locks and files 0600, from the run directory down."""
    with two.lease(60) as guest, guest.mounted():
        seen = [places.runtime, places.runtime / "pools", places.runtime / "locks"]
        seen += [share_lock(guest.work.path, places.runtime), two._dir.path]
        seen += [path for path in two._dir.path.rglob("*") if not path.name.startswith(".")]
        kinds = set()
        for path in seen:
            info = path.lstat()
            wanted = 0o700 if stat.S_ISDIR(info.st_mode) else 0o600
            assert stat.S_IMODE(info.st_mode) == wanted, path
            assert info.st_uid == os.getuid()
            kinds.add(stat.S_IFMT(info.st_mode))
        assert kinds == {stat.S_IFDIR, stat.S_IFREG, stat.S_IFSOCK}
