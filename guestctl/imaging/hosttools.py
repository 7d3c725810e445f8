"""What the host brings to an image: its compilers and tools, and the sources of guest-init."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from guestctl import resources
from guestctl.errors import HostLacks
from guestctl.recipe import Recipe

__all__ = ["guest_init_digest", "guest_init_files", "versions"]

_PATH = f"{os.defpath}:/usr/local/bin:/usr/sbin:/sbin"


def versions(recipe: Recipe) -> dict[str, str]:
    """Returns the versions of the host's packages that the recipe needs.

    Raises HostLacks that names all that are missing and their packages.
    """
    needed = dict(recipe.host)
    if recipe.python:  # bytecode is the same in all of a version, so its package is no input
        needed[recipe.python] = f"{recipe.python}-minimal"
    missing = {
        program: package
        for program, package in needed.items()
        if not (Path(program).exists() if "/" in program else shutil.which(program, path=_PATH))
    }
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise HostLacks(
            f"building an image of {recipe.arch} needs {', '.join(missing)}",
            hint=f"apt-get install {packages}",
        )
    return _installed(tuple(sorted(set(recipe.host.values()))))


@functools.cache
def _installed(packages: tuple[str, ...]) -> dict[str, str]:
    command = ["dpkg-query", "--show", "--showformat=${Package}\t${Version}\n", *packages]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        raise HostLacks("dpkg-query is not installed: images are built on Debian") from None
    found = dict(line.split("\t") for line in done.stdout.splitlines())
    return {package: found.get(package, "unknown") for package in packages}


def guest_init_files() -> list[Path]:
    """The files that guest-init is compiled from, sorted."""
    folder = resources.guest_init()
    kinds = (".c", ".h", ".S")
    return sorted(p for p in folder.iterdir() if p.suffix in kinds or p.name == "Makefile")


def guest_init_digest() -> str:
    """The hash of guest-init's sources and their names."""
    state = hashlib.sha256()
    for path in guest_init_files():
        data = path.read_bytes()
        state.update(f"{path.name} {len(data)}\n".encode() + data)
    return state.hexdigest()
