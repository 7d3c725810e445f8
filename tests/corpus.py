"""Archives and trees of every entry type, made without the code that they test."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Handmade",
    "HandmadeXattr",
    "Member",
    "cpio_newc",
    "every_type",
    "members",
    "tar_bytes",
    "write_every_type",
]

NS = 1_600_000_000_123_456_789


@dataclass(frozen=True)
class Member:
    """One member of a tar, in the terms of tarfile; `mtime` is pax text where it is no integer."""

    name: str
    kind: bytes = tarfile.REGTYPE
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1_600_000_000
    link: str = ""
    rdev: tuple[int, int] = (0, 0)
    pax: tuple[tuple[str, str], ...] = ()

    def info(self) -> tarfile.TarInfo:
        info = tarfile.TarInfo(self.name)
        info.type, info.mode, info.uid, info.gid = self.kind, self.mode, self.uid, self.gid
        info.mtime, info.linkname, info.size = self.mtime, self.link, len(self.data)
        info.devmajor, info.devminor = self.rdev
        info.pax_headers = dict(self.pax)
        return info


def directory(name: str, mode: int = 0o755, **rest: object) -> Member:
    return Member(name, tarfile.DIRTYPE, mode=mode, **rest)  # type: ignore[arg-type]


def symlink(name: str, target: str, **rest: object) -> Member:
    return Member(name, tarfile.SYMTYPE, mode=0o777, link=target, **rest)  # type: ignore[arg-type]


def hardlink(name: str, target: str, **rest: object) -> Member:
    return Member(name, tarfile.LNKTYPE, link=target, **rest)  # type: ignore[arg-type]


def every_type() -> Iterator[Member]:
    """Every type and oddity that a tree can hold, in sorted order, parents first."""
    ns = (("mtime", "1600000000.123456789"),)
    old = (("mtime", "-1000.5"),)
    yield directory("./", 0o755, uid=7, gid=8)
    yield directory("./dir", 0o2775, uid=3, gid=4, pax=ns)
    yield Member("./dir/file", data=b"hello\n", mode=0o4755, uid=0, gid=0, pax=ns)
    yield Member("./dir/high ids", data=b"x", uid=4294967294, gid=3000000000)
    yield Member("./dir/old", data=b"", pax=old)
    yield directory("./empty", 0o1777, pax=old)
    yield Member("./n" + "a" * 254, data=b"long name")
    yield symlink("./s-absolute", "/etc/passwd")
    yield symlink("./s-dangling", "no/such\nthing\n", pax=ns)
    yield symlink("./s-long", "t" * 4095)
    yield directory("./shut", 0)
    yield Member("./shut/inside", data=b"in a directory of mode 0", mode=0)
    yield Member("./t-blk", tarfile.BLKTYPE, mode=0o660, gid=6, rdev=(8, 17))
    yield Member("./t-chr", tarfile.CHRTYPE, mode=0o600, gid=5, rdev=(5, 1))
    yield Member("./t-chr-wide", tarfile.CHRTYPE, mode=0o600, rdev=(300, 70000))
    yield Member("./t-chr-widest", tarfile.CHRTYPE, mode=0o600, rdev=(1, 1048575))
    yield Member("./t-fifo", tarfile.FIFOTYPE, mode=0o640)
    yield Member("./u-bytes-\udcff\udc80", data=b"no UTF-8")
    yield Member("./u-newline\n", data=b"n")
    yield Member("./u-ünïcödé", data=b"u")
    yield Member("./v-user-attribute", data=b"a", pax=(("SCHILY.xattr.user.colour", "blue"),))
    yield hardlink("./z-link-chr", "./t-chr")
    yield hardlink("./z-link-fifo", "./t-fifo")
    yield hardlink("./z-link-file", "./dir/file")
    yield hardlink("./z-link-symlink", "./s-dangling")


def tar_bytes(wanted: Iterator[Member] | list[Member], *, end: bool = True) -> bytes:
    """A pax tar of the members, by Python's tarfile."""
    out = io.BytesIO()
    tar = tarfile.TarFile(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape"
    )
    for member in wanted:
        tar.addfile(member.info(), io.BytesIO(member.data) if member.data else None)
    if end:
        tar.close()
    return out.getvalue()


def cpio_newc(*rows: tuple[str, int, int, int, bytes]) -> bytes:
    """A cpio of (name, mode, inode, links, content), which can hold sockets."""
    out = b""
    for name, mode, ino, nlink, data in (*rows, ("TRAILER!!!", 0, 0, 1, b"")):
        fields = [ino, mode, 0, 0, nlink, 1000, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return out


def write_every_type(path: Path) -> Path:
    path.write_bytes(tar_bytes(every_type()))
    return path


def members(data: bytes | Path) -> dict[bytes, tuple[object, ...]]:
    """What an archive holds, by Python's tarfile: comparable facts for each name."""
    if isinstance(data, Path):
        data = data.read_bytes()
    found: dict[bytes, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        for info in tar:
            name = os.path.normpath(info.name)
            content = tar.extractfile(info).read(1 << 24) if info.isreg() else b""
            stamp = info.pax_headers.get("mtime") or str(int(info.mtime))
            xattrs = {k: v for k, v in info.pax_headers.items() if k.startswith("SCHILY.")}
            if info.islnk():
                found[os.fsencode(name)] = ("link", os.path.normpath(info.linkname))
                continue
            found[os.fsencode(name)] = (
                info.type,
                oct(info.mode),
                info.uid,
                info.gid,
                info.linkname,
                (info.devmajor, info.devminor) if info.isdev() and not info.isfifo() else (),
                stamp,
                content,
                tuple(sorted(xattrs.items())),
            )
    return found


class Handmade:
    """A mapped-file tree made by hand, as a guest or an accident would leave it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700)

    def meta(self, path: str) -> Path:
        at = self.root / path
        folder = at.parent / ".virtfs_metadata"
        folder.mkdir(exist_ok=True)
        return folder / at.name

    def text(self, path: str, text: bytes) -> Path:
        self.meta(path).write_bytes(text)
        return self.meta(path)

    def attributes(
        self, path: str, mode: int, uid: int = 0, gid: int = 0, rdev: int | None = None
    ) -> Path:
        text = b"virtfs.uid=%d\nvirtfs.gid=%d\nvirtfs.mode=%d\n" % (uid, gid, mode)
        if rdev is not None:
            text += b"virtfs.rdev=%d\n" % rdev
        return self.text(path, text)

    def file(self, path: str, data: bytes = b"", mode: int = 0o100644, **rest: int) -> Path:
        at = self.root / path
        at.write_bytes(data)
        at.chmod(0o600)
        self.attributes(path, mode, **rest)
        return at

    def folder(self, path: str, mode: int = 0o40755, **rest: int) -> Path:
        at = self.root / path
        at.mkdir(0o700)
        self.attributes(path, mode, **rest)
        return at

    def link(self, path: str, target: str) -> None:
        os.link(self.root / target, self.root / path)
        os.link(self.meta(target), self.meta(path))


class HandmadeXattr(Handmade):
    """The same of a mapped-xattr tree: each entry has its metadata as attributes of its own."""

    def attributes(
        self, path: str, mode: int, uid: int = 0, gid: int = 0, rdev: int | None = None
    ) -> Path:
        at = self.root / path
        for key, value in (("uid", uid), ("gid", gid), ("mode", mode)):
            os.setxattr(at, f"user.virtfs.{key}", (value % 2**32).to_bytes(4, "little"))
        if rdev is not None:
            os.setxattr(at, "user.virtfs.rdev", (rdev % 2**32).to_bytes(8, "little"))
        return at

    def link(self, path: str, target: str) -> None:
        os.link(self.root / target, self.root / path)


Make = Callable[[Path], Handmade]
