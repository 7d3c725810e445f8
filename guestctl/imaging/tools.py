"""/tools: the native compiler and its like, which run where there is nothing else.

Copies, whose loader, library path and interpreter point into /tools. gcc finds cc1, as and ld
relative to where it lies itself, and python3 its modules, so the layout below /tools is that below
/usr.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tarfile
from itertools import pairwise
from pathlib import Path

from guestctl.errors import ImageError
from guestctl.imaging.filetree import Content, FileTree
from guestctl.imaging.workshop import Step
from guestctl.recipe import Recipe

__all__ = ["add_tools"]

VERSION = 2
_ELF = b"\x7fELF"
_INTERPRETER = re.compile(rb"#! ?(?:/usr)?/bin/([\w.+-]+)")
_ROOT = "tools"


def add_tools(step: Step, tree: FileTree, recipe: Recipe) -> None:
    """Adds /tools to `tree`, made from what it holds already."""
    maker = _Maker(step, tree, recipe)
    for program in recipe.tools.programs:
        maker.program(program)
    for folder in recipe.tools.trees:
        maker.tree(folder)
    maker.loader()
    for name in recipe.tools.binutils:
        tree.link(f"{_ROOT}/{recipe.triplet}/bin/{name}", f"../../bin/{name}")


class _Maker:
    def __init__(self, step: Step, tree: FileTree, recipe: Recipe) -> None:
        self.step, self.from_tree, self.recipe = step, tree, recipe
        self.libraries = f"{_ROOT}/lib/{recipe.triplet}"
        self.interpreter = f"/{self.libraries}/{Path(recipe.loader).name}"
        self.scratch = step.scratch / "tools"
        self.scratch.mkdir()
        self.count = 0

    def program(self, name: str) -> None:
        """Copies a program, and the links that lead to it."""
        chain = self.from_tree.resolve(f"usr/bin/{name}")
        if not chain:
            raise ImageError(f"tools.programs: no package of the root holds /usr/bin/{name}")
        for link, target in pairwise(chain):
            self.from_tree.link(f"{_ROOT}/bin/{Path(link).name}", Path(target).name)
        self.copy(chain[-1], f"{_ROOT}/bin/{Path(chain[-1]).name}")

    def tree(self, folder: str) -> None:
        for path, node in self.from_tree.below(folder):
            source = f"{folder.strip('/')}/{path}"
            goal = f"{_ROOT}/{source.removeprefix('usr/')}"
            if node.kind in (tarfile.REGTYPE, tarfile.LNKTYPE):
                self.copy(source, goal)
            else:
                self.from_tree.nodes[goal] = node

    def loader(self) -> None:
        chain = self.from_tree.resolve(self.recipe.loader)
        content = self.from_tree.content(chain[-1])
        self.from_tree.file(self.interpreter, content, 0o755)

    def copy(self, source: str, goal: str) -> None:
        """Copies one file; what is linked dynamically is patched and brings its libraries."""
        tree = self.from_tree
        mode = tree.nodes[source].mode
        begin = self._begin_of(source)
        if begin.startswith(b"#!"):
            tree.file(goal, self.script(source), mode)
            return
        if begin != _ELF:
            tree.file(goal, tree.content(source), mode)
            return
        file = self.extract(source)
        if _segments(file, _PT_DYNAMIC):
            needed = self._patchelf("--print-needed", file).split()
            command: list[str | Path] = ["--force-rpath", "--set-rpath", f"/{self.libraries}"]
            if _segments(file, _PT_INTERP):
                command += ["--set-interpreter", self.interpreter]
            self._patchelf(*command, file)
            for name in needed:
                self.library(name)
        tree.file(goal, Content.of(file), mode)

    def script(self, source: str) -> bytes:
        """A script's text, with its interpreter from /tools where that has it."""
        text = self.extract(source).read_bytes()
        found = _INTERPRETER.match(text)
        if found is None or found[1].decode() not in self.recipe.tools.programs:
            return text
        return f"#!/{_ROOT}/bin/".encode() + text[found.start(1) :]

    def extract(self, source: str) -> Path:
        self.count += 1
        return self.from_tree.extract(source, self.scratch / f"{self.count}")

    def library(self, name: str) -> None:
        """Copies a shared library and those that it needs; the program's path finds them all."""
        goal = f"{self.libraries}/{name}"
        if goal in self.from_tree.nodes or name == Path(self.recipe.loader).name:
            return
        for folder in (f"usr/lib/{self.recipe.triplet}", "usr/lib"):
            chain = self.from_tree.resolve(f"{folder}/{name}")
            if chain:
                break
        else:
            raise ImageError(f"tools: no package of the root holds the library {name}")
        self.from_tree.file(goal, self.from_tree.content(chain[-1]))
        file = self.extract(chain[-1])
        for other in self._patchelf("--print-needed", file).split():
            self.library(other)

    def _begin_of(self, source: str) -> bytes:
        content = self.from_tree.content(source)
        if isinstance(content, bytes):
            return content[: len(_ELF)]
        with content.path.open("rb") as file:
            file.seek(content.offset)
            return file.read(min(len(_ELF), content.size))

    @staticmethod
    def _patchelf(*words: str | Path) -> str:
        command = [shutil.which("patchelf") or "patchelf", *map(str, words)]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            raise ImageError(f"tools: patchelf: {done.stderr.strip()}")
        return done.stdout


_PT_DYNAMIC, _PT_INTERP = 2, 3


def _segments(file: Path, wanted: int) -> int:
    """How many program headers of a type an ELF file has (elf(5); little-endian)."""
    with file.open("rb") as stream:
        head = stream.read(64)
        wide = head[4] == 2
        offset = (
            struct.unpack_from("<Q", head, 32)[0] if wide else struct.unpack_from("<I", head, 28)[0]
        )
        size, number = struct.unpack_from("<HH", head, 54 if wide else 42)
        stream.seek(offset)
        table = stream.read(size * number)
    return sum(
        struct.unpack_from("<I", table, at)[0] == wanted for at in range(0, len(table), size or 1)
    )
