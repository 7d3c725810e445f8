"""Debian's own sources of a few tools, built static: emulated, a dynamic exec costs far more."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from guestctl.errors import ImageError
from guestctl.imaging.workshop import Step
from guestctl.recipe import Locked, Recipe, StaticTool

__all__ = ["build_libraries", "build_static"]

VERSION = 1

# Debian's patches change files that configure was made from; nothing is to be made anew.
_NO_AUTOTOOLS = ("ACLOCAL=:", "AUTOCONF=:", "AUTOMAKE=:", "AUTOHEADER=:", "MAKEINFO=:")


def build_libraries(step: Step, packages: Sequence[Path]) -> None:
    """Unpacks the -dev packages of the libraries that static tools are linked with."""
    for package in packages:
        step.run(["dpkg-deb", "--extract", package, step.out], deadline=300)


def build_static(
    step: Step,
    recipe: Recipe,
    tool: StaticTool,
    files: Mapping[Locked, Path],
    libraries: Path,
    jobs: int,
) -> None:
    """Builds one tool; `files` are those of its source package, already verified."""
    holder = step.scratch / "files"
    holder.mkdir()
    for entry, path in files.items():
        (holder / Path(entry.filename).name).symlink_to(path)
    description = next(holder.glob("*.dsc"), None)
    if description is None:
        raise ImageError(f"the lock has no .dsc of the source package {tool.source}")
    source = step.scratch / "source"
    step.run(["dpkg-source", "--no-check", "-x", description, source], deadline=300)
    for command in tool.prepare:
        step.run(command, cwd=source, deadline=600)
    flags = {
        "CC": f"{recipe.cross}gcc",
        "CFLAGS": f"-O2 -ffile-prefix-map={step.scratch}=.",
        "CPPFLAGS": f"-I{libraries}/usr/include -I{libraries}/usr/include/{recipe.triplet}",
        "LDFLAGS": f"-static -L{libraries}/usr/lib/{recipe.triplet}",
        "FORCE_UNSAFE_CONFIGURE": "1",  # coreutils asks for it when root builds
    }
    configure = ["./configure", f"--host={recipe.triplet}", "--prefix=/usr", "--disable-nls"]
    configure += ["--disable-dependency-tracking", *_NO_AUTOTOOLS]
    step.run([*configure, *tool.configure], cwd=source, env=flags, deadline=1200)
    for words in tool.make:
        step.run(
            ["make", f"-j{jobs}", *_NO_AUTOTOOLS, *words], cwd=source, env=flags, deadline=1200
        )
    for built, name in tool.outputs.items():
        program = source / built
        step.run([f"{recipe.cross}strip", "-o", step.out / name, program], deadline=60)
        (step.out / name).chmod(stat.S_IRUSR | stat.S_IWUSR | 0o155)
