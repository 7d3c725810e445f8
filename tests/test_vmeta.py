"""The metadata codec, against what QEMU was seen to write."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestctl.vmeta import (
    ID_MAX,
    Meta,
    decode_rdev,
    decode_text,
    decode_xattrs,
    encode_rdev,
    encode_text,
    encode_xattrs,
    has_rdev,
)

ids = st.integers(0, ID_MAX)
TYPES = [
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
]
modes = st.builds(lambda kind, perm: kind | perm, st.sampled_from(TYPES), st.integers(0, 0o7777))


@pytest.mark.parametrize(
    ("device", "text"),
    [((5, 1), 1281), ((8, 17), 2065), ((300, 70000), 286338160), ((1, 1048575), -1048065)],
)
def test_rdev_as_qemu_writes_it(device, text):
    raw = encode_rdev(*device)
    assert encode_text(0, 0, 0o20600, raw).endswith(b"virtfs.rdev=%d\n" % text)
    assert decode_rdev(decode_text(encode_text(0, 0, 0o20600, raw)).rdev) == device


def test_text_as_qemu_writes_it():
    assert encode_text(0, 5, 0o100644) == b"virtfs.uid=0\nvirtfs.gid=5\nvirtfs.mode=33188\n"
    assert encode_text(4294967294, 3000000000, 0o40755) == (
        b"virtfs.uid=-2\nvirtfs.gid=-1294967296\nvirtfs.mode=16877\n"
    )
    assert encode_text(0, 0, 0o140755, 0).endswith(b"virtfs.mode=49645\nvirtfs.rdev=0\n")


@pytest.mark.parametrize(
    ("text", "meta"),
    [
        (b"", Meta()),
        (b"virtfs.uid=5\r\nvirtfs.gid=6\r\n", Meta(5, 6)),
        (b"virtfs.mode=33188", Meta(mode=33188)),
        (b"virtfs.uid=12abc\n", Meta(uid=12)),
        (b"virtfs.uid = 5\n", Meta(uid=0)),
        (b"virtfs.uid=1\nvirtfs.uid=2\n", Meta(uid=2)),
        (b"virtfs.mode=0100644\n", Meta(mode=100644)),
        (b"junk\nvirtfs.uid=3\nmore junk\n", Meta(uid=3)),
        (b"x" * 99 + b"virtfs.uid=3\n", Meta(uid=3)),
        (b"x" * 98 + b"virtfs.uid=3\n", Meta()),
        (b" virtfs.uid=3\n", Meta()),
        (b"virtfs.uid=\0003\n", Meta(uid=0)),
        (b"virtfs.gid=" + b"9" * 5000, Meta(gid=0xFFFFFFFF)),
    ],
)
def test_parsed_as_qemu_parses(text, meta):
    assert decode_text(text) == meta


@given(ids, ids, modes, st.integers(0, 0xFFFFFFFE))
def test_text_and_xattrs_round_trip(uid, gid, mode, rdev):
    given_rdev = rdev if has_rdev(mode) else None
    meta = Meta(uid, gid, mode, given_rdev)
    assert decode_text(encode_text(uid, gid, mode, given_rdev)) == meta
    assert decode_xattrs(dict(encode_xattrs(uid, gid, mode, given_rdev))) == meta
    assert meta.complete


@given(st.binary(max_size=4096))
def test_any_bytes_parse(data):
    meta = decode_text(data)
    assert all(v is None or 0 <= v <= 0xFFFFFFFF for v in (meta.uid, meta.gid, meta.mode))


@given(st.integers(0, 4095), st.integers(0, 1048575))
def test_rdev_round_trips(major, minor):
    assert decode_rdev(encode_rdev(major, minor)) == (major, minor)


def test_what_cannot_be_held_is_refused():
    for call in (
        lambda: encode_text(4294967295, 0, 0o100644),
        lambda: encode_text(0, -1, 0o100644),
        lambda: encode_text(0, 0, 0o644),
        lambda: encode_text(0, 0, 0o20600, encode_rdev(4095, 1048575)),
        lambda: encode_rdev(4096, 0),
        lambda: encode_rdev(0, 1 << 20),
    ):
        with pytest.raises(ValueError):
            call()
    assert encode_xattrs(0, 0, 0o20600, encode_rdev(4095, 1048575))
