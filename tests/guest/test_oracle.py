"""QEMU is the oracle: a guest sees what we staged, and we collect what a guest made.

The guest's own kernel lists a staged tree by bare system calls (lister.c), and its own tar packs
what it made; both have to equal what went in or comes out here, under both security models.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import sys
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from guestctl import Guest, Pool, collect, stage
from guestctl.image import Image
from guestctl.places import Places
from guestctl.translate import check
from guestctl.vmeta import META_DIR, ROOT_FILE
from tests.corpus import (
    Member,
    cpio_newc,
    directory,
    every_type,
    hardlink,
    members,
    symlink,
    tar_bytes,
)

HERE = Path(__file__).parent
FORMS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
SPARSE = b"2\n65536\n4\n393216\n4\n".ljust(512, b"\0") + b"datamore"
HOLES = bytes(65536) + b"data" + bytes(393216 - 65540) + b"more" + bytes(524288 - 393220)


class Seen(NamedTuple):
    """What a guest says of one entry; `names` are all that share its inode."""

    mode: int
    uid: int
    gid: int
    rdev: tuple[int, int]
    size: int
    mtime: int
    crc: int
    target: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    names: frozenset[bytes]


@pytest.fixture(scope="session")
def lister(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The lister as a static program for the guest."""
    out = tmp_path_factory.mktemp("lister") / "lister"
    argv = ["arm-linux-gnueabi-gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]
    subprocess.run([*argv, "-o", out, HERE / "lister.c"], check=True, timeout=60)
    return out.read_bytes()


def unhex(text: str) -> bytes:
    return b"" if text == "-" else bytes.fromhex(text)


def parsed(listing: bytes) -> dict[bytes, Seen]:
    rows = [line.split(" ") for line in listing.decode("ascii").splitlines()]
    names: dict[str, set[bytes]] = defaultdict(set)
    for row in rows:
        names[row[4]].add(unhex(row[9]))
    found = {}
    for mode, uid, gid, nlink, inode, rdev, size, mtime, crc, path, target, attributes in rows:
        form = stat.S_IFMT(int(mode, 8))
        if form != stat.S_IFDIR:
            assert int(nlink) == len(names[inode]), unhex(path)
        seconds, nanoseconds = mtime.split(".")
        pairs = [pair.split("=") for pair in attributes.split(",")] if attributes != "-" else []
        major, minor = rdev.split(":")
        found[unhex(path)] = Seen(
            int(mode, 8),
            int(uid),
            int(gid),
            (int(major), int(minor)),
            int(size) if form == stat.S_IFREG else 0,
            int(seconds) * 10**9 + int(nanoseconds),
            int(crc, 16),
            unhex(target),
            tuple(sorted((unhex(name), unhex(value)) for name, value in pairs)),
            frozenset(names[inode]),
        )
    return found


def listed(guest: Guest, lister: bytes, where: str = "/work") -> dict[bytes, Seen]:
    """What the guest sees of its share, which is mounted."""
    script = 'cat >/tmp/lister && chmod 755 /tmp/lister && exec /tmp/lister "$0"'
    done = guest.run(["sh", "-ec", script, where], stdin=lister, timeout=120)
    assert (done.status, done.stderr) == (0, b"")
    return parsed(done.stdout)


def meant(wanted: list[Member]) -> dict[bytes, Seen]:
    """What the members say, by nothing but their own words."""
    names: dict[str, set[bytes]] = defaultdict(set)
    for member in wanted:
        first = member.link if member.kind == tarfile.LNKTYPE else member.name
        names[os.path.normpath(first)].add(os.fsencode(os.path.normpath(member.name)))
    names = {
        key: {b"./" + name if name != b"." else name for name in value}
        for key, value in names.items()
    }
    found = {}
    for member in wanted:
        if member.kind == tarfile.LNKTYPE:
            continue
        pax = dict(member.pax)
        data = HOLES if "GNU.sparse.major" in pax else member.data
        regular = member.kind == tarfile.REGTYPE
        path = os.path.normpath(member.name)
        whole, _, fraction = pax.get("mtime", str(member.mtime)).partition(".")
        rest = int(fraction.ljust(9, "0"))
        seen = Seen(
            FORMS[member.kind] | member.mode,
            member.uid,
            member.gid,
            member.rdev,
            len(data) if regular else 0,
            int(whole) * 10**9 + (-rest if whole.startswith("-") else rest),
            zlib.crc32(data) if regular else 0,
            os.fsencode(member.link),
            tuple(
                sorted(
                    (os.fsencode(key[13:]), os.fsencode(value))
                    for key, value in pax.items()
                    if key.startswith("SCHILY.xattr.user.")
                )
            ),
            frozenset(names[path]),
        )
        for name in names[path]:
            found[name] = seen
    return found


def wide() -> list[Member]:
    """All that corpus.every_type has, and what is odder still."""
    sparse = (
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "./w-sparse"),
        ("GNU.sparse.realsize", "524288"),
    )
    attributes = (
        ("SCHILY.xattr.user.one", "1"),
        ("SCHILY.xattr.user.two", "zwei\n" * 200),
        ("SCHILY.xattr.user.empty", ""),
    )
    odd = "".join(chr(0xDC80 + n % 128) for n in range(255))
    return [
        *every_type(),
        directory("./w-attributes", 0o751, pax=attributes),
        Member("./w-attributes/file", data=b"a", pax=attributes),
        Member(f"./{odd}", data=b"255 bytes that are no UTF-8"),
        directory("./w-\udcc3(", 0o3777, uid=65536, gid=4294967294),
        symlink("./w-\udcc3(/to", "\udcff/\udc80" * 40, uid=70000, gid=1),
        Member("./w-blk-wide", tarfile.BLKTYPE, mode=0o7777, rdev=(4095, 1048574)),
        hardlink("./w-link-blk", "./w-blk-wide"),
        Member("./w-quotes '\"\\$(x)`", data=b"q", mode=0o2000),
        Member("./w-sparse", data=SPARSE, pax=sparse),
        Member("./w- leading", data=bytes(range(256)) * 300, mode=0o6751),
    ]


def test_a_guest_sees_what_the_archive_says(shared_guest: Guest, lister: bytes) -> None:
    wanted = wide()
    model = shared_guest.work.security_model
    if model == "mapped-xattr":  # mapped-file cannot tell this one from "unset"
        wanted.append(Member("./w-chr-widest", tarfile.CHRTYPE, rdev=(4095, 1048575)))
    # tar has no sockets; cpio has.
    stage(io.BytesIO(cpio_newc(("sock", 0o140751, 9, 1, b""))), shared_guest.work)
    stage(io.BytesIO(tar_bytes(wanted)), shared_guest.work)
    wanted_seen = meant(wanted)
    with shared_guest.mounted():
        found = listed(shared_guest, lister)
        # Case 19: nobody else collects what a guest has mounted.
        argv = [sys.executable, "-m", "guestctl", "virtfs", "collect"]
        done = subprocess.run(
            [*argv, shared_guest.work.path, "-"], capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (1, b"") and b"in use" in done.stderr
    socket = found.pop(b"./sock")
    assert (socket.mode, socket.uid, socket.gid, socket.size) == (0o140751, 0, 0, 0)
    assert not differing(found, wanted_seen)
    assert not check(shared_guest.work)


def differing(one: Mapping[Any, Any], two: Mapping[Any, Any]) -> list[str]:
    """What two sets of facts differ in, in lines short enough for a report."""
    lines = [f"{path!r} is in one only" for path in one.keys() ^ two.keys()]
    for path in one.keys() & two.keys():
        pairs = zip(one[path], two[path], strict=False)
        unlike = [(mine, other) for mine, other in pairs if mine != other]
        if unlike or len(one[path]) != len(two[path]):
            lines.append(f"{path!r}: {unlike!r}")
    return [line[:300] for line in lines[:20]]


def test_a_staged_tree_behaves_as_a_real_one(shared_guest: Guest, lister: bytes) -> None:
    """The same changes to the same archive, staged and on the guest's own disk, end the same."""
    wanted = [*wide(), directory("./w-empty"), directory("./w-other-empty")]
    wanted += [directory("./x"), Member("./x/y", data=b"stays")]
    stage(io.BytesIO(tar_bytes(wanted)), shared_guest.work)
    archive = io.BytesIO()
    collect(shared_guest.work, archive)
    unpack = "mkdir /tmp/real && cd /tmp/real && tar --xattrs --warning=no-timestamp -xpf -"
    done = shared_guest.run(["sh", "-ec", unpack], stdin=archive.getvalue(), timeout=60).check()
    assert done.stderr == b""
    changes = (HERE / "changes.sh").read_bytes()
    listings = []
    with shared_guest.mounted():
        for where in ("/tmp/real", "/work"):
            before = listed(shared_guest, lister, where)
            shared_guest.run(["bash", "-e"], stdin=changes, cwd=where, timeout=60).check()
            listings.append((before, listed(shared_guest, lister, where)))
        packed = shared_guest.run(PACK, timeout=60).check().stdout
    (real, changed), (ours, ours_changed) = listings
    real.pop(b"./lost+found", None)
    assert not differing(real, ours)
    assert not differing(without_now(changed), without_now(ours_changed))
    # QEMU leaves its folder where the last entry went; nothing else may be amiss.
    left = {(problem.kind, problem.path) for problem in check(shared_guest.work)}
    assert left <= {("empty-metadata", b"dir/deep")}
    assert not differing(collected(shared_guest.work.path), archived(packed))
    with shared_guest.mounted():
        script = "find . -mindepth 1 -delete && ls -A && mkdir again && rmdir again"
        assert shared_guest.run(["sh", "-ec", script], timeout=60).check().stdout == b""
    assert set(os.listdir(shared_guest.work.path)) <= {
        os.fsdecode(META_DIR),
        os.fsdecode(ROOT_FILE),
    }
    assert not check(shared_guest.work)


def without_now(listing: dict[bytes, Seen]) -> dict[bytes, Seen]:
    """Times that the changes made are those of two moments."""
    recent = 1_700_000_000 * 10**9
    return {
        path: seen._replace(mtime=0) if seen.mtime > recent else seen
        for path, seen in listing.items()
    }


PACK = [
    "tar",
    "--format=posix",
    "--xattrs",
    "--xattrs-include=user.*",
    "--sort=name",
    "-cf",
    "-",
    ".",
]


NODES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


def archived(data: bytes) -> dict[bytes, tuple[object, ...]]:
    """What an archive says: times as numbers, and links to nodes as nodes, as GNU tar has them."""
    found = members(data)
    for name, facts in found.items():
        target = found.get(os.fsencode(str(facts[1])), facts) if facts[0] == "link" else facts
        if target[0] in (*NODES, *FORMS) and (target is facts or target[0] in NODES):
            found[name] = (*target[:6], Fraction(str(target[6])), *target[7:])
    return found


def collected(tree: Path) -> dict[bytes, tuple[object, ...]]:
    out = io.BytesIO()
    collect(tree, out)
    return archived(out.getvalue())


def on_disk(root: Path) -> dict[str, tuple[object, ...]]:
    """A tree as the host has it: types, modes, bytes, attributes, and who shares an inode."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    paths = sorted(path for path in root.rglob("*"))
    for path in [root, *paths]:
        info = path.lstat()
        shown = str(path.relative_to(root))
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        regular = stat.S_ISREG(info.st_mode)
        # The times of QEMU's own files say nothing.
        own = os.fsdecode(META_DIR) in shown
        found[shown] = (
            oct(info.st_mode) if path != root else "",
            path.read_bytes() if regular else b"",
            0 if own else info.st_mtime_ns,
            first.setdefault(info.st_ino, shown) if regular else "",
            attributes,
        )
    return found


def test_what_a_guest_makes_is_collected_and_staged_as_it_was(
    shared_guest: Guest, tmp_path: Path
) -> None:
    """Collected it is what the guest's tar says; staged again it is what QEMU wrote."""
    script = (HERE / "make.sh").read_bytes()
    with shared_guest.mounted():
        shared_guest.run(["bash", "-e"], stdin=script, timeout=60).check()
        packed = shared_guest.run(PACK, timeout=60).check().stdout
    theirs = archived(packed)
    assert len(theirs) == 32
    assert not check(shared_guest.work)
    out = io.BytesIO()
    report = collect(shared_guest.work, out)
    assert [line.split(":")[0] for line in report.warnings] == ["sock"]
    assert not differing(archived(out.getvalue()), theirs)
    root = shared_guest.work.path
    before = root.stat()
    (root / "sock").unlink()
    (root / os.fsdecode(META_DIR) / "sock").unlink(missing_ok=True)
    os.utime(root, ns=(0, before.st_mtime_ns))
    model = shared_guest.work.security_model
    stage(io.BytesIO(out.getvalue()), tmp_path / "staged", security_model=model)
    assert not differing(on_disk(root), on_disk(tmp_path / "staged"))


CAPABLE = "\1\0\0\2\0 \0\0" + "\0" * 12  # cap_net_raw=ep, as ping has it
BUILD = """
mkdir bin
mv moved bin/moved
ln linked bin/linked
chmod 700 chmodded
cp copied copy
echo other >written
rm replaced
echo other >replaced
mv written-aside over
"""


def test_a_capability_comes_through_a_build(shared_guest: Guest) -> None:
    """It is kept where no guest looks, goes with its file, and ends when the content changes."""
    pax = (("SCHILY.xattr.security.capability", CAPABLE),)
    kept = {"still", "moved", "linked", "chmodded", "copied"}
    lost = {"written", "replaced", "over"}
    wanted = [Member(f"./{name}", data=b"program", mode=0o755, pax=pax) for name in kept | lost]
    plain = Member("./written-aside", data=b"other")
    stage(io.BytesIO(tar_bytes([*wanted, plain])), shared_guest.work)
    with shared_guest.mounted():
        shared_guest.run(["sh", "-ec", BUILD], timeout=60).check()
    out = io.BytesIO()
    report = collect(shared_guest.work, out)
    found = {os.fsdecode(name): facts for name, facts in members(out.getvalue()).items()}
    capable = {name for name, facts in found.items() if facts[0] != "link" and facts[-1] == pax}
    assert capable == {"still", "bin/moved", "bin/linked", "chmodded", "copied"}
    assert found["linked"] == ("link", "bin/linked")
    assert [line.split(":")[0] for line in report.warnings] == ["written"]


ACCESS = "user::rw-,user:5:r--:5,group::r-x,mask::r-x,other::---"
DEFAULT = "user::rwx,group::r-x,group:4000000000:-wx:4000000000,mask::rwx,other::--x"
NOBODY = 0xFFFFFFFF


def acl(*rows: tuple[int, int, int]) -> bytes:
    """The kernel's form of an ACL (linux/posix_acl_xattr.h): version 2, (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


IN_KERNEL = {
    b"system.posix_acl_access": acl(
        (1, 6, NOBODY), (2, 4, 5), (4, 5, NOBODY), (16, 5, NOBODY), (32, 0, NOBODY)
    ),
    b"system.posix_acl_default": acl(
        (1, 7, NOBODY), (4, 5, NOBODY), (8, 3, 4000000000), (16, 7, NOBODY), (32, 1, NOBODY)
    ),
}


def test_acls_where_the_model_holds_them(
    armv5l_image: Image, places: Places, lister: bytes
) -> None:
    """A guest that mounts with posixacl sees those of the archive, and we collect its own."""
    wanted = [
        Member("./file", mode=0o650, pax=(("SCHILY.acl.access", ACCESS),)),
        directory("./folder", pax=(("SCHILY.acl.default", DEFAULT),)),
    ]
    mount = (
        "mount -t 9p -o trans=virtio,version=9p2000.L,access=client,posixacl work /mnt && cd /mnt"
    )
    with (
        Pool("armv5l", 1, places=places, security_model="mapped-xattr") as pool,
        pool.lease(timeout=30) as guest,
    ):
        stage(io.BytesIO(tar_bytes(wanted)), guest.work)
        script = f"cat >/tmp/lister && chmod 755 /tmp/lister; {mount}; /tmp/lister /mnt"
        seen = parsed(guest.run(["sh", "-ec", script], stdin=lister, timeout=60).check().stdout)
        value = IN_KERNEL[b"system.posix_acl_access"].hex()
        name = "system.posix_acl_access"
        program = f'($n, $v) = ("{name}", pack("H*", "{value}"))'
        program += "; syscall(226, $ARGV[0], $n, $v, length $v, 0) == 0 or die $!"
        script = f"{mount}; echo x >new; perl -e '{program}' new; echo y >folder/inherits"
        guest.run(["sh", "-ec", script], timeout=60).check()
        found = collected(guest.work.path)
    assert dict(seen[b"./file"].xattrs) == {
        b"system.posix_acl_access": IN_KERNEL[b"system.posix_acl_access"]
    }
    assert dict(seen[b"./folder"].xattrs) == {
        b"system.posix_acl_default": IN_KERNEL[b"system.posix_acl_default"]
    }
    assert dict(found[b"new"][-1]) == {"SCHILY.acl.access": ACCESS}
    assert dict(found[b"folder"][-1]) == {"SCHILY.acl.default": DEFAULT}
    assert "group:4000000000:-wx" in dict(found[b"folder/inherits"][-1])["SCHILY.acl.access"]
