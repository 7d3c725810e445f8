"""Entries as text and as JSON facts. Pure."""

from __future__ import annotations

import os
import re
import stat
import time
from typing import Any

from guestctl.entry import Entry, type_name

__all__ = ["facts", "line"]

_CONTROL = re.compile(rb"[\x00-\x1f\x7f\\]|[\x80-\xff]+")


def _escape(match: re.Match[bytes]) -> bytes:
    raw = match[0]
    try:
        raw.decode()
    except UnicodeDecodeError:
        return b"".join(b"\\%03o" % byte for byte in raw)
    if raw[0] >= 0x80:
        return raw
    return {b"\\": b"\\\\", b"\n": b"\\n", b"\t": b"\\t"}.get(raw, b"\\%03o" % raw[0])


def _printable(name: bytes) -> str:
    """Names as GNU tar shows them: nothing in them can move a terminal's cursor."""
    return _CONTROL.sub(_escape, name).decode()


def _time(ns: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ns // 10**9))
    except (OverflowError, ValueError, OSError):
        return f"@{ns // 10**9}"


def line(entry: Entry) -> str:
    """One line as of `tar -tv`, in UTC; a hard link is shown with what it links to."""
    device = stat.S_IFMT(entry.mode) in (stat.S_IFCHR, stat.S_IFBLK)
    size = f"{entry.rdev[0]},{entry.rdev[1]}" if device else str(entry.size)
    name = _printable(entry.path) or "."
    if entry.link is not None:
        name += f" link to {_printable(entry.link)}"
    elif stat.S_ISLNK(entry.mode):
        name += f" -> {_printable(entry.target)}"
    owner = f"{entry.uid}/{entry.gid}"
    width = max(1, 19 - len(owner))
    return f"{stat.filemode(entry.mode)} {owner} {size:>{width}} {_time(entry.mtime)} {name}"


def facts(entry: Entry) -> dict[str, Any]:
    """What JSON has of an entry; names that are no UTF-8 keep their bytes as lone surrogates."""
    found: dict[str, Any] = {
        "path": os.fsdecode(entry.path) or ".",
        "type": type_name(entry.mode),
        "mode": f"{stat.S_IMODE(entry.mode):04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime_ns": entry.mtime,
    }
    if entry.link is not None:
        found["link"] = os.fsdecode(entry.link)
    elif stat.S_ISLNK(entry.mode):
        found["target"] = os.fsdecode(entry.target)
    if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
        found["device"] = list(entry.rdev)
    if entry.xattrs:
        found["xattrs"] = {os.fsdecode(n): v.hex() for n, v in sorted(entry.xattrs.items())}
    return found
