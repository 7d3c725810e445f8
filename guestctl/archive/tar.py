"""tar as a sequence of entries: the order of headers, and sparse files in all four forms.

Ours, since it decides the speed of staging.
"""

from __future__ import annotations

import base64
import os
import stat
import urllib.parse
from collections.abc import Iterator

from guestctl import acl
from guestctl.archive.sparse import REGIONS_MAX
from guestctl.archive.stream import Stream
from guestctl.archive.tarfmt import (
    BLOCK,
    Header,
    is_header,
    pad,
    parse_header,
    parse_number,
    parse_pax,
    parse_time,
)
from guestctl.entry import Entry, clean_path
from guestctl.errors import ArchiveError

__all__ = ["TarReader"]

_ZERO = bytes(BLOCK)
_SIZE_MAX = 2**63 - 1
_PAX_MAX = 16 << 20  # xattrs may be large; names may not
_NAME_MAX = 1 << 16
_WARNINGS = 1000  # a hostile archive could have more than memory holds
_SHARED_MAX = 1000  # keywords for all members that follow


class TarReader:
    late_content = False

    def __init__(self, stream: Stream) -> None:
        self.name = stream.name
        self.stream = stream
        self.left = 0
        self.warnings: list[str] = []

    def close(self) -> None:
        pass

    def _fail(self, what: str, shown: str = "") -> ArchiveError:
        where = shown or f"the header before byte {self.stream.offset}"
        return ArchiveError(f"{self.name}: {where}: {what}")

    def __iter__(self) -> Iterator[Entry]:  # noqa: PLR0912, PLR0915 (the types of header are many)
        stream = self.stream
        shared: dict[bytes, bytes] = {}
        local: dict[bytes, bytes] = {}
        pairs: list[tuple[bytes, bytes]] = []
        long_name = long_target = None
        while True:
            block = stream.upto(BLOCK)
            if block == _ZERO or len(block) < BLOCK:
                break
            if not is_header(block):
                raise self._fail("not a tar header (bad checksum)")
            try:
                header = parse_header(block)
            except ValueError as error:
                raise self._fail(str(error)) from None
            kind = header.kind
            if kind in b"xXgLK":
                body = self._body(header)
                try:
                    if kind == b"g":
                        shared.update(parse_pax(body))
                        self._bounded(shared)
                    elif kind in b"xX":
                        pairs = parse_pax(body)
                        first = not local
                        local.update(pairs)
                        if not first:  # else the header's own bounds hold
                            self._bounded(local)
                    elif kind == b"L":
                        long_name = body.split(b"\0", 1)[0]
                    else:
                        long_target = body.split(b"\0", 1)[0]
                except ValueError as error:
                    raise self._fail(str(error)) from None
                continue
            if long_name is not None:
                header.name = long_name
            if long_target is not None:
                header.target = long_target
            if kind == b"V":  # the volume's label
                stream.skip(header.size + pad(header.size))
            elif kind in b"MN":
                raise self._fail("multi-volume archives are not supported")
            else:
                pax = {**shared, **local} if shared else local
                entry = self._checked(header, pax, pairs)
                padding = -self.left % BLOCK
                yield entry
                if rest := self.left + padding:
                    self.left = 0
                    stream.skip(rest)
            if local:
                local, pairs = {}, []
            long_name = long_target = None
        self._finish(block, bool(local or long_name or long_target))

    def _finish(self, block: bytes, pending: bool) -> None:
        stream = self.stream
        stream.at = b""
        if len(block) < BLOCK or pending:
            if not block and not stream.offset:
                raise ArchiveError(f"{self.name}: the archive is empty")
            what = "within a header" if block else "its end marker is missing"
            raise ArchiveError(
                f"{self.name}: the archive is cut short: {what}", hint="fetch or make it again"
            )
        second = stream.upto(BLOCK)
        if second.strip(b"\0"):
            raise self._fail("more follows a lone block of zeros")
        if not stream.drain():
            self.warnings.append(f"{self.name}: more follows the archive's end: left out")

    @staticmethod
    def _bounded(pax: dict[bytes, bytes]) -> None:
        """Header after header could bring more than memory holds.

        :raise ValueError: they do.
        """
        if len(pax) > _SHARED_MAX or sum(map(len, pax.values())) > _PAX_MAX:
            raise ValueError("too much in extended headers before one member")

    def _body(self, header: Header) -> bytes:
        limit = _NAME_MAX if header.kind in b"LK" else _PAX_MAX
        if header.size > limit:
            raise self._fail(f"an extended header of {header.size} bytes")
        body = self.stream.exactly(header.size + pad(header.size))
        return body[: header.size]

    def _checked(
        self, header: Header, pax: dict[bytes, bytes], pairs: list[tuple[bytes, bytes]]
    ) -> Entry:
        self.stream.at = header.name
        try:
            return self._entry(header, pax, pairs)
        except ValueError as error:
            raise self._fail(str(error), os.fsdecode(pax.get(b"path", header.name))) from None

    def _entry(
        self, header: Header, pax: dict[bytes, bytes], pairs: list[tuple[bytes, bytes]]
    ) -> Entry:
        form = header.format
        name = header.name
        mtime = header.mtime * 10**9
        size = header.size
        uid, gid = header.uid, header.gid
        target = header.target
        rdev = (header.major, header.minor)
        if pax:
            name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or name
            target = pax.get(b"linkpath") or target
            if value := pax.get(b"mtime"):
                mtime = parse_time(value)
            size = _decimal(pax, b"size", size)
            uid = _decimal(pax, b"uid", uid)
            gid = _decimal(pax, b"gid", gid)
            rdev = (
                _decimal(pax, b"SCHILY.devmajor", rdev[0]),
                _decimal(pax, b"SCHILY.devminor", rdev[1]),
            )
        if header.kind in b"0\0" and name.endswith(b"/"):
            form = stat.S_IFDIR  # v7 has no type for directories
        entry = Entry(clean_path(name), form | header.mode, uid, gid, mtime)
        self.left = size
        if form == stat.S_IFREG:
            if header.kind == b"1":
                entry.link = clean_path(target)
                if size and not pax and self._followed_by_header():
                    self.left = 0  # old archivers give the size, and no payload
                return entry
            entry.size = size
            if header.kind == b"S":
                self._old_sparse(entry, header)
            elif pax and any(key.startswith(b"GNU.sparse.") for key in pax):
                self._pax_sparse(entry, pax, pairs)
        elif form == stat.S_IFLNK:
            entry.target = target
        elif form in (stat.S_IFCHR, stat.S_IFBLK):
            entry.rdev = rdev
        # POSIX: no payload, whatever the size says; old archivers meant a directory's own. But a
        # GNU dump directory has one, which may look like the archive's end.
        if header.kind in b"23456" or (
            form == stat.S_IFDIR
            and header.kind != b"D"
            and self.left
            and self._followed_by_header()
        ):
            self.left = 0
        if pax:
            self._xattrs(entry, pax)
        return entry

    def _xattrs(self, entry: Entry, pax: dict[bytes, bytes]) -> None:
        for key, value in pax.items():
            if key.startswith(b"SCHILY.xattr."):
                # GNU tar's escapes; '=' would end the keyword.
                name = key[13:].replace(b"%3D", b"=").replace(b"%25", b"%")
                entry.xattrs[name] = value
            elif key.startswith(b"LIBARCHIVE.xattr."):
                name = urllib.parse.unquote_to_bytes(key[17:])
                entry.xattrs.setdefault(name, base64.b64decode(value + b"=" * (-len(value) % 4)))
            elif key in (b"SCHILY.acl.access", b"SCHILY.acl.default"):
                try:
                    entry.xattrs[b"system.posix_acl_" + key[11:]] = acl.encode(value)
                except ValueError as error:
                    if len(self.warnings) < _WARNINGS:
                        self.warnings.append(f"{entry.shown}: {error}: left out")

    def _followed_by_header(self) -> bool:
        head = self.stream.peek(BLOCK)
        return head == _ZERO or is_header(head)

    def _regions(self, entry: Entry, numbers: list[int], real: int) -> None:
        if len(numbers) % 2 or real > _SIZE_MAX:
            raise ValueError("a broken map of a sparse file")
        regions = list(zip(numbers[::2], numbers[1::2], strict=True))
        at = total = 0
        for offset, length in regions:
            if offset < at or length < 0 or offset + length > real:
                raise ValueError("a broken map of a sparse file")
            at = offset + length
            total += length
        if total != self.left:
            raise ValueError("the map of a sparse file does not match its size")
        entry.size = real
        entry.sparse = [region for region in regions if region[1]]

    def _old_sparse(self, entry: Entry, header: Header) -> None:
        numbers: list[int] = []

        def take(block: bytes, at: int, count: int) -> None:
            for start in range(at, at + 24 * count, 24):
                if not block[start : start + 24].strip(b"\0"):
                    break
                numbers.append(parse_number(block[start : start + 12]))
                numbers.append(parse_number(block[start + 12 : start + 24]))

        take(header.block, 386, 4)
        more = header.block[482]
        while more and more != 0x30:
            block = self.stream.exactly(BLOCK)
            take(block, 0, 21)
            more = block[504]
            if len(numbers) > 2 * REGIONS_MAX:
                raise _too_many()
        self._regions(entry, numbers, parse_number(header.block[483:495]))

    def _pax_sparse(
        self, entry: Entry, pax: dict[bytes, bytes], pairs: list[tuple[bytes, bytes]]
    ) -> None:
        real = _decimal(pax, b"GNU.sparse.realsize", _decimal(pax, b"GNU.sparse.size", -1))
        if real < 0:
            raise ValueError("a sparse file without a size")
        if pax.get(b"GNU.sparse.major") == b"1":
            self._regions(entry, self._leading_map(), real)
        elif (listed := pax.get(b"GNU.sparse.map")) is not None:
            if listed.count(b",") > 2 * REGIONS_MAX:
                raise _too_many()
            self._regions(entry, [_int(n) for n in listed.split(b",") if n], real)
        else:  # 0.0: the keywords repeat, and their order counts
            wanted = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
            self._regions(entry, [_int(value) for key, value in pairs if key in wanted], real)

    def _leading_map(self) -> list[int]:
        """Reads the map that format 1.0 has before the data: decimal lines in whole blocks."""
        data = bytearray()
        count, lines = -1, 0
        while True:
            if self.left < BLOCK:
                raise ValueError("a broken map of a sparse file")
            block = self.stream.exactly(BLOCK)
            data += block
            lines += block.count(b"\n")
            self.left -= BLOCK
            if count < 0 and lines:
                count = _int(bytes(data.partition(b"\n")[0]))
                if count > REGIONS_MAX:
                    raise _too_many()
            if count >= 0 and lines > 2 * count:
                return [_int(line) for line in bytes(data).split(b"\n")[1 : 2 * count + 1]]
            if len(data) > 50 * (count + 1) + 2 * BLOCK:
                raise ValueError("a broken map of a sparse file")


def _too_many() -> ValueError:
    return ValueError(f"a sparse file of more than {REGIONS_MAX} regions")


def _int(text: bytes) -> int:
    digits = text.lstrip(b"0") or b"0"
    if not text.isdigit() or len(digits) > 20:
        raise ValueError(f"bad number {text[:40]!r}")
    return int(digits)


def _decimal(pax: dict[bytes, bytes], key: bytes, default: int) -> int:
    value = pax.get(key)
    return _int(value) if value else default
