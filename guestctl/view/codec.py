"""Settings and calls as the worker reads them, replies and bundles as it writes them. Pure.

host-view/wire.h is the other side: native byte order, texts end with a zero.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from guestctl import vmeta
from guestctl.view.calls import Call, Limits, Tree, Written

__all__ = ["REPLY_SIZE", "Reply", "encode_call", "encode_settings", "parse_bundle", "parse_reply"]

_RECORD = struct.Struct("=II")
_REPLY = struct.Struct("=IIIIQQQQ256s")
_BUNDLED = struct.Struct("=IIQQ")
REPLY_SIZE = _REPLY.size

_TOOLCHAIN, _TREE, _LIMIT = 1, 2, 3
_PROGRAM, _ARGUMENT, _ENVIRONMENT, _CWD, _UMASK, _MOUNT, _BIND, _MODE, _GIVEN = range(1, 10)
_NO_TREE = _KEEP_MODE = 0xFFFFFFFF
_MODELS = {None: 0, vmeta.MAPPED_FILE: 1, vmeta.MAPPED_XATTR: 2}
_KINDS = {1: "file", 2: "folder", 3: "link", 4: "gone"}
_TROUBLES = ("", "timeout", "cancelled", "space", "output", "entries", "reserved")


@dataclass(frozen=True)
class Reply:
    """`state` is `ready`, `done` or `failed`; `status` is that of waitpid, times in seconds."""

    state: str
    status: int
    trouble: str
    error: int
    wall: float
    user: float
    system: float
    memory: int
    text: str


def encode_settings(trees: Mapping[str, Tree], toolchain: Path, limits: Limits) -> bytes:
    body = _record(_TOOLCHAIN, _text(os.fsencode(toolchain)))
    for tree in trees.values():
        head = struct.pack("=II", _MODELS[tree.model], tree.fixed)
        body += _record(_TREE, head + _text(os.fsencode(tree.path)))
    values = (
        round(limits.seconds * 1000),
        limits.processor,
        limits.memory,
        limits.processes * limits.calls,
        limits.open_files,
        limits.written,
        limits.output,
        limits.entries,
    )
    for number, value in enumerate(values):
        body += _record(_LIMIT, struct.pack("=IIQ", number, 0, value))
    return body


def encode_call(call: Call, trees: Mapping[str, Tree]) -> bytes:
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(trees)}
    numbers[None] = _NO_TREE
    parts = [_record(_PROGRAM, _text(call.program)), _record(_CWD, _text(call.cwd))]
    parts += [_record(_ARGUMENT, _text(word)) for word in call.argv]
    parts += [
        _record(_ENVIRONMENT, _text(name + b"=" + value))
        for name, value in call.environment.items()
    ]
    parts.append(_record(_UMASK, struct.pack("=I", call.umask)))
    for mount in call.mounts:
        head = struct.pack("=II", numbers[mount.tree], mount.readonly)
        parts.append(_record(_MOUNT, head + _text(mount.subpath) + _text(mount.at.rstrip(b"/"))))
    parts += [_record(_BIND, _text(bind.source) + _text(bind.at)) for bind in call.binds]
    parts += [_record(_MODE, _text(path)) for path in call.modes]
    for given in call.given:
        head = struct.pack("=IIQ", given.mode, 0, given.mtime)
        parts.append(_record(_GIVEN, head + _text(given.path) + given.data))
    return b"".join(parts)


def parse_reply(data: bytes) -> Reply:
    state, status, trouble, error, wall, user, system, memory, text = _REPLY.unpack(data)
    return Reply(
        {1: "ready", 2: "done", 3: "failed"}[state],
        status,
        _TROUBLES[trouble],
        error,
        wall / 1e6,
        user / 1e6,
        system / 1e6,
        memory,
        text.split(b"\0", 1)[0].decode(errors="backslashreplace"),
    )


def parse_bundle(data: memoryview) -> Iterator[Written]:
    at = 0
    while at < len(data):
        kind, mode, path, size = _BUNDLED.unpack_from(data, at)
        at += _BUNDLED.size
        name = b"/" + bytes(data[at : at + path])
        at += path
        content = bytes(data[at : at + size])
        at += size
        yield Written(name, _KINDS[kind], None if mode == _KEEP_MODE else mode, content)


def _record(tag: int, value: bytes) -> bytes:
    return _RECORD.pack(tag, len(value)) + value


def _text(value: bytes) -> bytes:
    return value + b"\0"
