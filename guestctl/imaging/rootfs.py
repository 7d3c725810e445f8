"""The root file system: Debian packages as they are, and what their maintainer scripts would do.

No script runs. Written as a tar stream to sqfstar, which needs no root. Nothing is compressed:
under emulation decompressing costs more than reading.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from guestctl.errors import ImageError
from guestctl.imaging.bytecode import add_bytecode
from guestctl.imaging.filetree import Content, FileTree, Node
from guestctl.imaging.squashfs import write_squashfs
from guestctl.imaging.tools import add_tools
from guestctl.imaging.workshop import Step
from guestctl.recipe import Locked, Recipe

__all__ = ["STATIC", "build_root"]

VERSION = 4
STATIC = "usr/lib/guestctl/static"  # first in a command's PATH

# No one reads these in a guest; licences stay.
_DROPPED = tuple(
    f"usr/share/{name}/"
    for name in ("doc", "man", "locale", "info", "lintian", "bug", "bash-completion", "menu",
                 "doc-base", "pixmaps", "applications", "gdb")
)  # fmt: skip
_KEPT = ("copyright",)
_FOLDERS = {
    "base": 0o755, "boot": 0o755, "build": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755,
    "mnt": 0o755, "proc": 0o555, "root": 0o700, "run": 0o755, "srv": 0o755, "sys": 0o555,
    "tmp": 0o1777, "tools": 0o755, "var/tmp": 0o1777, "work": 0o755,
}  # fmt: skip
_FILES = {
    "etc/fstab": "",
    "etc/hostname": "guest\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 guest\n::1 localhost\n",
    "etc/machine-id": "",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "etc/resolv.conf": "nameserver 10.0.2.3\n",  # QEMU's own, where the guest has a network
    "etc/shells": "/bin/sh\n/bin/bash\n/bin/dash\n",
    "etc/timezone": "Etc/UTC\n",
}
_MASTERS = {"etc/passwd": "usr/share/base-passwd/passwd.master",
            "etc/group": "usr/share/base-passwd/group.master"}  # fmt: skip


def build_root(
    step: Step, recipe: Recipe, packages: Mapping[Locked, Path], static: Mapping[str, Path]
) -> None:
    """Makes `root`, a squashfs. `static` are the folders of the static tools by their sources."""
    tree = FileTree()
    commands: dict[str, list[str]] = {}
    for entry, package in sorted(packages.items()):
        archive = step.scratch / f"{entry.name}.tar"
        _unpack(package, archive)
        files = tree.add_tar(archive, keep=_KEPT, drop=_DROPPED)
        found = [re.fullmatch(r"usr/s?bin/([^/]+)", path) for path in files]
        commands[entry.name] = [match[1] for match in found if match]
    _complete(tree, recipe)
    _add_static(tree, recipe, static, commands, STATIC)
    for path, target in recipe.links.items():
        tree.link(path, target)
        if not tree.resolve(path):
            raise ImageError(f"links: {path}: there is no {target} to link to")
    if recipe.python:
        add_bytecode(step, tree, recipe.python)
    add_tools(step, tree, recipe)
    _add_static(tree, recipe, static, commands, "tools/bin")
    write_squashfs(step, tree, step.out / "root")


def _unpack(package: Path, archive: Path) -> None:
    with archive.open("wb") as output:
        done = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(package)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, timeout=300,
            check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise ImageError(f"{package}: dpkg-deb: {done.stderr.decode(errors='replace').strip()}")


def _complete(tree: FileTree, recipe: Recipe) -> None:
    """What the scripts of base-files, base-passwd and libc would have made."""
    for path, mode in _FOLDERS.items():
        tree.folder(path, mode)
    for path, text in _FILES.items():
        tree.file(path, text.encode())
    for path, master in _MASTERS.items():
        if master not in tree.nodes:
            raise ImageError(f"root: the package base-passwd is missing: there is no /{master}")
        tree.file(path, tree.content(master))
    tree.link("etc/mtab", "../proc/self/mounts")
    for name in ("bin", "sbin", "lib", "lib64"):
        if f"usr/{name}" in tree.nodes or any(p.startswith(f"usr/{name}/") for p in tree.nodes):
            tree.nodes[name] = Node(tarfile.SYMTYPE, 0o777, target=f"usr/{name}")
    if not tree.resolve(recipe.loader):
        raise ImageError(f"loader: no package of the root holds {recipe.loader}")


def _add_static(
    tree: FileTree,
    recipe: Recipe,
    static: Mapping[str, Path],
    commands: Mapping[str, list[str]],
    folder: str,
) -> None:
    for tool in recipe.static:
        names = list(tool.outputs.values())
        for name in names:
            tree.file(f"{folder}/{name}", Content.of(static[tool.source] / name), 0o755)
        for name in (*tool.links, *commands.get(tool.links_of, ())):
            if name not in tool.links_except:
                tree.link(f"{folder}/{name}", names[0])
