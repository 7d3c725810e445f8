"""Where a process in the guest stands: which trees of the host it sees, and where. Pure.

Made from what the agent says of a service's caller (records of OPEN, docs/protocol.md). Format of
the mounts: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from guestctl.view import Mount
from guestctl.wire import Tag

__all__ = ["Place", "Unseen", "locate", "within"]

# Trees of the host by what the guest has mounted: (type, source). Overlays are the agent's: their
# lower layer is a tree, and of the upper one the agent says what is in it.
_TREES = {
    (b"9p", b"work"): "work",
    (b"9p", b"base"): "base",
    (b"overlay", b"image"): "root",
    (b"overlay", b"sysroot"): "base",
}
# Below these the guest's tools read what nobody names to them.
_READ_UNASKED = frozenset(
    (b"usr", b"lib", b"lib32", b"lib64", b"libexec", b"bin", b"sbin", b"opt", b"tools")
)
_READ_IN_ETC = (b"etc/ld.so.",)
# But for these: what interpreters keep, what only programs by name read, what a sysroot is lent.
_NEVER_READ = re.compile(
    rb"(?:.*/)?__pycache__/.*|usr/share/.+|(?:usr/)?bin/(?:sh|pwd|env)", re.DOTALL
)
# Mount points in every guest: nothing there is ever read by name, but /dev/null.
_SYSTEM = (b"/dev", b"/proc", b"/sys")


@dataclass(frozen=True)
class Place:
    """`mounts` are what the host can show; below the paths in `hidden` the guest has files that
    the host cannot see."""

    mounts: tuple[Mount, ...]
    hidden: tuple[bytes, ...]


@dataclass(frozen=True)
class Unseen:
    """The host cannot see what the process sees, for this reason."""

    reason: str


@dataclass(frozen=True)
class _Mounted:
    id: int
    parent: int
    device: bytes
    root: bytes  # within its file system
    at: bytes
    readonly: bool
    kind: bytes
    source: bytes


def locate(caller: Mapping[int, bytes]) -> Place | Unseen:
    """Returns where a caller stands."""
    if Tag.JOB not in caller:
        return Unseen("a process with mounts of its own")
    needed = (Tag.CALLER_ROOT, Tag.ROOT_DEVICE, Tag.MOUNTS, Tag.CHANGED)
    if any(tag not in caller for tag in needed):
        return Unseen("the agent cannot describe the mounts")
    return _locate(*(caller[tag] for tag in needed), caller.get(Tag.LAYER))


@lru_cache(maxsize=256)
def _locate(
    root: bytes, device: bytes, table: bytes, changed: bytes, layer: bytes | None
) -> Place | Unseen:
    try:
        mounts = _visible([_parse(line) for line in table.splitlines()])
    except (ValueError, IndexError):
        return Unseen("the agent's list of mounts makes no sense")
    if b" (deleted)" in root or not root.startswith(b"/") or len(device) != 8:
        return Unseen("a root folder that is gone")
    home = max(
        (mount for mount in mounts if within(root, mount.at)),
        key=lambda mount: len(mount.at),
        default=None,
    )
    if home is None or home.device != b"%d:%d" % struct.unpack("<II", device):
        return Unseen("a root folder out of sight")
    shown = [(home, _show(home, _join(home.root, _below(root, home.at)), b"/"))]
    shown += [
        (mount, _show(mount, mount.root, b"/" + _below(mount.at, root)))
        for mount in mounts
        if mount is not home and within(mount.at, root) and mount.at != root
    ]
    places = [place for _, place in shown]
    if places[0].tree is None:
        return Unseen(f"a root folder on {home.kind.decode(errors='replace')}")
    hidden = _hidden(shown, changed, layer)
    if isinstance(hidden, Unseen):
        return hidden
    # What the system holds is the same everywhere, and the view has its own /dev/null.
    kept = [place for place in places if not any(within(place.at, at) for at in _SYSTEM)]
    kept.sort(key=lambda place: len(place.at))
    return Place(tuple(kept), _outermost([*hidden, *_SYSTEM]))


def _hidden(
    shown: list[tuple[_Mounted, Mount]], changed: bytes, layer: bytes | None
) -> list[bytes] | Unseen:
    """Where the guest has files that no tree holds."""
    hidden = [place.at for _, place in shown if place.tree is None]
    for mount, place in shown:
        if mount.kind != b"overlay" or place.tree is None:
            continue
        names = changed if place.tree == "root" else layer
        if names is None:
            return Unseen("the agent cannot say what a layer holds")
        covered = [o.at for _, o in shown if o.at != place.at and within(o.at, place.at)]
        altered = _altered(place, names, covered)
        if isinstance(altered, Unseen):
            return altered
        hidden += altered
    return hidden


def _outermost(paths: list[bytes]) -> tuple[bytes, ...]:
    """Without those that lie in others."""
    found: list[bytes] = []
    for path in sorted(paths):
        if not any(within(path, other) for other in found):
            found.append(path)
    return tuple(found)


def _altered(mount: Mount, names: bytes, covered: list[bytes]) -> list[bytes] | Unseen:
    """Where what the guest has changed below a mount appears; `covered` by others it does not."""
    found = []
    for name in names.split(b"\0"):
        path = b"/" + name.rstrip(b"/")
        inner = b"/" + mount.subpath
        if not name or not (within(path, inner) or within(inner, path)):
            continue
        at = _join(mount.at, _below(path, inner))
        if any(within(at, other) for other in covered):
            continue
        read = name.split(b"/")[0] in _READ_UNASKED or name.startswith(_READ_IN_ETC)
        if read and not _NEVER_READ.fullmatch(name):
            what = "its image" if mount.tree == "root" else "its sysroot"
            return Unseen(f"the guest has changed {what}: {path.decode(errors='backslashreplace')}")
        if name not in (b"etc", b"proc", b"dev", b"sys"):
            found.append(at)
    return found


def _show(mount: _Mounted, inner: bytes, at: bytes) -> Mount:
    tree = _TREES.get((mount.kind, mount.source))
    return Mount(tree, inner.strip(b"/") if tree else b"", at, mount.readonly)


def _parse(line: bytes) -> _Mounted:
    left, right = line.split(b" - ", 1)
    first, second = left.split(b" "), right.split(b" ")
    return _Mounted(
        int(first[0]),
        int(first[1]),
        first[2],
        _plain(first[3]),
        _plain(first[4]),
        b"ro" in first[5].split(b","),
        second[0],
        _plain(second[1]),
    )


def _visible(mounts: list[_Mounted]) -> list[_Mounted]:
    """Those that are not hidden under others. A mount on a mount's own root replaces it."""
    known = {mount.id for mount in mounts}
    children: dict[int, list[_Mounted]] = {}
    for mount in mounts:
        # The first has a parent out of sight; a file system can be its own parent.
        parent = mount.parent if mount.parent in known and mount.parent != mount.id else -1
        children.setdefault(parent, []).append(mount)
    found = []
    waiting = list(children.get(-1, []))
    while waiting:
        mount = waiting.pop()
        below = children.get(mount.id, [])
        on_top = [child for child in below if child.at == mount.at]
        if on_top:
            waiting += on_top
            continue
        found.append(mount)
        waiting += [
            child
            for child in below
            if not any(within(child.at, other.at) for other in below if other.at != child.at)
        ]
    return found


def _plain(text: bytes) -> bytes:
    """Without the octal escapes of space, tab, newline and backslash."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


def within(path: bytes, folder: bytes) -> bool:
    """Whether a path is a folder or below it; both absolute, without links."""
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def _below(path: bytes, folder: bytes) -> bytes:
    """`path` relative to `folder`."""
    return path[len(folder.rstrip(b"/")) :].strip(b"/")


def _join(folder: bytes, name: bytes) -> bytes:
    return folder.rstrip(b"/") + b"/" + name if name else folder
