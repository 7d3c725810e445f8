"""What is wrong with an entry's metadata, and what would be right. Pure."""

from __future__ import annotations

import stat

from guestctl.entry import type_name
from guestctl.vmeta import Meta, encode_text, has_rdev

__all__ = ["fields_of", "judge", "text_of"]


def judge(known: Meta, host: int, present: bool) -> tuple[str, str, Meta]:
    """Says what is wrong with metadata, in what way, and what would be right."""
    form = stat.S_IFMT(host)
    mode = host if known.mode is None else known.mode & 0o177777
    claimed = stat.S_IFMT(mode)
    kind = detail = ""
    if not present:
        kind = "missing"
    elif known.mode is not None and not claimed:
        kind, mode = "no-type", form | stat.S_IMODE(mode)
    elif (claimed == stat.S_IFDIR) != (form == stat.S_IFDIR) or type_name(mode) == "unknown":
        kind, detail = "wrong-type", f"{type_name(mode)}, but it is a {type_name(form)}"
        mode = form | stat.S_IMODE(mode)
    elif not known.complete:
        kind = "partial"
    rdev = known.rdev
    if rdev is None and has_rdev(mode):
        rdev = 0
    right = Meta(_id(known.uid), _id(known.gid), mode, rdev)
    return kind, detail, right


def _id(value: int | None) -> int:
    return 0 if value is None or value == 0xFFFFFFFF else value


def fields_of(meta: Meta) -> tuple[int, int, int, int | None]:
    assert meta.uid is not None and meta.gid is not None and meta.mode is not None
    return meta.uid, meta.gid, meta.mode, meta.rdev


def text_of(meta: Meta) -> bytes:
    uid, gid, mode, rdev = fields_of(meta)
    return encode_text(uid, gid, mode, None if rdev == 0xFFFFFFFF else rdev)
