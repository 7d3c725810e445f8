"""A file system as a table of nodes, made from packages and written as a tar stream.

Contents stay where they are (in an unpacked package, in a file, in memory) until they are written;
owners and modes never touch the disk, so that no root is needed.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from guestctl.errors import ImageError

__all__ = ["Content", "FileTree", "Node"]

_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32")


@dataclass(frozen=True)
class Content:
    """`size` bytes of `path` at `offset`."""

    path: Path
    offset: int
    size: int

    @classmethod
    def of(cls, path: Path) -> Content:
        return cls(path, 0, path.stat().st_size)

    def copy(self, to: IO[bytes]) -> None:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.size
            while left:
                block = file.read(min(left, 1 << 20))
                if not block:
                    raise ImageError(f"{self.path} is cut short")
                to.write(block)
                left -= len(block)


@dataclass(frozen=True)
class Node:
    """A file's metadata. `kind` is tarfile's type; a hard link's `target` is a path of the tree."""

    kind: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    target: str = ""
    content: Content | bytes = b""


class FileTree:
    """Paths without a leading slash, and their nodes. /bin and its like are merged into /usr."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def folder(self, path: str, mode: int = 0o755) -> None:
        self.nodes[_merged(path)] = Node(tarfile.DIRTYPE, mode)

    def file(self, path: str, content: Content | bytes, mode: int = 0o644) -> None:
        self.nodes[_merged(path)] = Node(tarfile.REGTYPE, mode, content=content)

    def link(self, path: str, target: str) -> None:
        self.nodes[_merged(path)] = Node(tarfile.SYMTYPE, 0o777, target=target)

    def add_tar(
        self, archive: Path, keep: tuple[str, ...] = (), drop: tuple[str, ...] = ()
    ) -> list[str]:
        """Adds what an uncompressed tar holds, but not below `drop`, unless its name is in `keep`.

        Returns the paths of the regular files.
        """
        files = []
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                path = _merged(member.name)
                if not path or (path.startswith(drop) and Path(path).name not in keep):
                    continue
                node = Node(member.type, member.mode & 0o7777, member.uid, member.gid)
                if member.islnk():
                    node = replace(node, target=_merged(member.linkname))
                elif member.issym():
                    node = replace(node, target=member.linkname, mode=0o777)
                elif member.isreg():
                    content = Content(archive, member.offset_data, member.size)
                    node = replace(node, kind=tarfile.REGTYPE, content=content)
                    files.append(path)
                old = self.nodes.get(path)
                # A package may bring a folder where another has a link to one.
                if not (member.isdir() and old and old.kind == tarfile.SYMTYPE):
                    self.nodes[path] = node
        return files

    def resolve(self, path: str) -> list[str]:
        """Returns `path` and what its links lead to, the last being no link; [] if it dangles."""
        chain = [_merged(path)]
        while (node := self.nodes.get(chain[-1])) and node.kind == tarfile.SYMTYPE:
            target = os.path.join("/", os.path.dirname(chain[-1]), node.target)
            chain.append(_merged(os.path.normpath(target)))
            if len(chain) > 20:
                raise ImageError(f"/{path} is a loop of links")
        return chain if chain[-1] in self.nodes else []

    def below(self, folder: str) -> Iterator[tuple[str, Node]]:
        """The nodes under a folder, with paths relative to it."""
        prefix = _merged(folder) + "/"
        for path, node in list(self.nodes.items()):
            if path.startswith(prefix):
                yield path[len(prefix) :], node

    def content(self, path: str) -> Content | bytes:
        """A regular file's content, through hard links."""
        node = self.nodes[path]
        return self.nodes[node.target].content if node.kind == tarfile.LNKTYPE else node.content

    def extract(self, path: str, to: Path) -> Path:
        """Writes one file's content to disk."""
        content = self.content(path)
        with to.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content.copy(file)
        to.chmod(0o700)
        return to

    def write(self, stream: IO[bytes]) -> None:
        """Writes a tar: sorted, of the year 1970, parents first, the same bytes each time."""
        for path in list(self.nodes):
            for parent in list(Path(path).parents)[:-1]:
                self.nodes.setdefault(str(parent), Node(tarfile.DIRTYPE, 0o755))
        first: dict[str, str] = {}  # a file of several names: the one that carries the content
        for path in sorted(self.nodes):
            self._write_node(stream, path, self.nodes[path], first)
        stream.write(bytes(1024))

    def _write_node(self, stream: IO[bytes], path: str, node: Node, first: dict[str, str]) -> None:
        info = tarfile.TarInfo(path)
        if node.kind == tarfile.LNKTYPE and node.target not in self.nodes:
            raise ImageError(f"/{path} is a hard link to /{node.target}, which is missing")
        owner = self.nodes[node.target] if node.kind == tarfile.LNKTYPE else node
        info.type, info.mode, info.uid, info.gid = node.kind, owner.mode, owner.uid, owner.gid
        info.linkname = node.target if node.kind == tarfile.SYMTYPE else ""
        content: Content | bytes = b""
        if node.kind in (tarfile.REGTYPE, tarfile.LNKTYPE):
            carrier = first.setdefault(node.target or path, path)
            if carrier != path:
                info.type, info.linkname = tarfile.LNKTYPE, carrier
            else:
                info.type, content = tarfile.REGTYPE, owner.content
                info.size = len(content) if isinstance(content, bytes) else content.size
        stream.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        if isinstance(content, bytes):
            stream.write(content)
        else:
            content.copy(stream)
        stream.write(bytes(-info.size % 512))


def _merged(path: str) -> str:
    """The path without leading slash and dot, in the merged /usr layout."""
    path = os.path.normpath("/" + path).lstrip("/")
    return f"usr/{path}" if path.partition("/")[0] in _MERGED else path
