"""POSIX access control lists: the text of pax archives and the binary form of Linux. Pure.

Source: linux/posix_acl_xattr.h; acl(5). Names of users cannot be resolved here: ids only.
"""

from __future__ import annotations

import re
import struct

__all__ = ["decode", "encode"]

_TAGS = {"user": (1, 2), "group": (4, 8), "mask": (16, 16), "other": (32, 32)}
_NAMES = {1: "user", 2: "user", 4: "group", 8: "group", 16: "mask", 32: "other"}
_NO_ID = 0xFFFFFFFF
_ID = re.compile(r"[0-9]{1,10}")
_SHORT = {"u": "user", "g": "group", "m": "mask", "o": "other"}


def encode(text: bytes) -> bytes:
    """Returns the value of `system.posix_acl_*` for a pax text; ValueError if malformed."""
    rows = []
    for part in text.decode("utf-8", "surrogateescape").replace("\n", ",").split(","):
        item = part.partition("#")[0].strip()
        if not item:
            continue
        fields = item.split(":")
        kind = _SHORT.get(fields[0], fields[0])
        if kind not in _TAGS or len(fields) < 2:
            raise ValueError(f"bad access control entry {item!r}")
        # user:NAME:rwx:ID is star's form, user:ID:rwx the plain one, mask:rwx a short one.
        who = fields[1] if len(fields) > 2 else ""
        perms = fields[2] if len(fields) > 2 else fields[1]
        if len(fields) > 3 and _ID.fullmatch(fields[3]):
            who = fields[3]
        if who and not (_ID.fullmatch(who) and int(who) < _NO_ID):
            raise ValueError(f"access control entry {item!r} names no numeric id")
        bits = sum(bit for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if letter in perms)
        rows.append((_TAGS[kind][bool(who)], bits, int(who) if who else _NO_ID))
    rows.sort(key=lambda row: (row[0], row[2]))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


def decode(value: bytes) -> bytes:
    """Returns the pax text of a binary ACL; ValueError if malformed."""
    if len(value) < 4 or (len(value) - 4) % 8 or value[:4] != b"\2\0\0\0":
        raise ValueError("malformed access control list")
    rows = []
    for tag, bits, who in struct.iter_unpack("<HHI", value[4:]):
        if tag not in _NAMES:
            raise ValueError("malformed access control list")
        perms = "".join(c if bits & bit else "-" for c, bit in (("r", 4), ("w", 2), ("x", 1)))
        owner = str(who) if tag in (2, 8) else ""
        rows.append(f"{_NAMES[tag]}:{owner}:{perms}" + (f":{owner}" if owner else ""))
    return ",".join(rows).encode()
