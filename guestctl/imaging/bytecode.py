"""Python's bytecode, which the maintainer scripts of Debian's packages would have written.

Without it a guest compiles every module that a program imports, in each lease anew. Bytecode is the
same on all architectures, so the host's Python of the same version writes it.
"""

from __future__ import annotations

import os
import tarfile

from guestctl.imaging.filetree import Content, FileTree
from guestctl.imaging.workshop import Step

__all__ = ["add_bytecode"]

VERSION = 1


def add_bytecode(step: Step, tree: FileTree, python: str) -> None:
    """Adds what `python`, as "python3.11", makes of the modules of the tree.

    A module that is changed in a guest is compiled anew there: its time of change is in the
    bytecode (PEP 552), and that of all files of the root is 0.
    """
    scratch = step.scratch / "bytecode"
    folders = (f"usr/lib/{python}", "usr/lib/python3/dist-packages")
    for folder in folders:
        (scratch / folder).mkdir(parents=True, exist_ok=True)
        for path, node in tree.below(folder):
            if path.endswith(".py") and node.kind == tarfile.REGTYPE:
                module = scratch / folder / path
                module.parent.mkdir(parents=True, exist_ok=True)
                os.utime(tree.extract(f"{folder}/{path}", module), (0, 0))
    # One process and one seed of hashes, so that the same modules give the same bytes.
    command = [python, "-B", "-m", "compileall", "-q", "--invalidation-mode", "timestamp"]
    command += ["-s", str(scratch), "-p", "/", *(str(scratch / folder) for folder in folders)]
    step.run(command, env={"PYTHONHASHSEED": "0"}, deadline=900)
    for file in sorted(scratch.rglob("*.pyc")):
        tree.file(str(file.relative_to(scratch)), Content.of(file))
