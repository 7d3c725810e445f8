"""Toolchains in the user's cache: made from Debian's packages, unpacked and fitted without root."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from guestctl import resources
from guestctl.errors import HostLacks, ImageError, UsageError
from guestctl.imaging.workshop import Progress, Report, Step, Workshop
from guestctl.packages import Archive, PackageGone
from guestctl.packages.apt import host_architecture
from guestctl.recipe import Locked, dump_lock, parse_lock
from guestctl.targets import target
from guestctl.toolchain.elf import Elf
from guestctl.toolchain.facts import FACTS, FORM, Program, Toolchain
from guestctl.toolchain.fitting import fit_compiler, fit_loader, fit_program, texts_of
from guestctl.toolchain.identity import identity_of
from guestctl.toolchain.recipe import Recipe, parse_recipe

__all__ = ["find", "install", "installed", "lock", "recipe"]

_GROUPS = ("cross", "library", "native")
_LIBRARY_FOLDERS = ("usr/lib", "lib")


def recipe(arch: str, gcc: str = "") -> Recipe:
    """Returns the toolchain's recipe of `arch`; raises UsageError for an unknown one.

    `gcc` is a major version, for another compiler than that of the image.
    """
    path = _path(target(arch).arch, gcc, "yaml")
    try:
        return parse_recipe(path.read_text(), str(path))
    except FileNotFoundError:
        names = [file.name for file in resources.images().glob(f"{arch}.toolchain-*.yaml")]
        known = " ".join(sorted(name.partition("-")[2].removesuffix(".yaml") for name in names))
        hint = f"beside the image's own there is {known}" if known else ""
        raise UsageError(f"there is no toolchain with gcc {gcc} for {arch}", hint=hint) from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None


def install(
    arch: str,
    gcc: str = "",
    *,
    cache_dir: Path,
    locked: bool = False,
    mirror: Sequence[str] = (),
    progress: Report = lambda event: None,
) -> Toolchain:
    """Makes the toolchain of `arch`, or finds it in the cache; `gcc` as for `recipe`.

    Packages are those of the lock. When the archive has some of them no more, today's are taken;
    with `locked`, PackageGone is raised instead. Raises HostLacks on a host of another
    architecture than the lock's, and ImageError.
    """
    made_from = recipe(arch, gcc)
    _check_host(made_from)
    entries = _lock_of(arch, gcc)
    archive = _archive(made_from, cache_dir, mirror)
    workshop = Workshop(cache_dir, jobs=1, report=progress)
    ready = _made(made_from, entries, cache_dir)
    if ready is None:
        entries, files = _fetch(archive, made_from, entries, locked, progress)
        work = partial(_make, recipe=made_from, files=files)
        ready = workshop.make(_name(arch), _facts(made_from, entries), work)
    os.utime(ready)
    return Toolchain.load(ready)


def find(arch: str, *, cache_dir: Path) -> Toolchain:
    """Returns the toolchain that today's recipe and lock make; raises ImageError if there is none.

    Where the archive had some packages of the lock no more, the newest one is returned.
    """
    made_from = recipe(arch)
    _check_host(made_from)
    ready = _made(made_from, _lock_of(arch), cache_dir)
    if ready is not None:
        return Toolchain.load(ready)
    others = installed(arch, cache_dir=cache_dir)
    if not others:
        hint = f"guestctl toolchain install {arch}"
        raise ImageError(f"there is no toolchain of {arch} yet", hint=hint)
    return others[0]


def installed(arch: str | None = None, *, cache_dir: Path) -> list[Toolchain]:
    """Returns the toolchains in the cache, the newest first; those of `arch` only, if given."""
    found = []
    for facts in (cache_dir / "steps").glob(f"{_name(arch or '*')}-*/{FACTS}"):
        if json.loads(facts.read_text()).get("form") == FORM:  # others are of other versions
            found.append((facts.parent.stat().st_mtime_ns, Toolchain.load(facts.parent)))
    return [made for _, made in sorted(found, key=lambda pair: pair[0], reverse=True)]


def lock(
    arch: str,
    gcc: str = "",
    *,
    cache_dir: Path,
    mirror: Sequence[str] = (),
    output: Path | None = None,
) -> tuple[Path, tuple[Locked, ...]]:
    """Resolves the recipe against today's archive, and writes the lock beside it or to `output`."""
    made_from = recipe(arch, gcc)
    entries = _resolve(_archive(made_from, cache_dir, mirror), made_from)
    path = output or _path(arch, gcc, "lock")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(dump_lock(entries, arch).replace("image lock", "toolchain lock", 1))
        draft.replace(path)
    except OSError as error:
        hint = "--output FILE writes the lock elsewhere"
        raise ImageError(f"{path}: {error.strerror}", hint=hint) from None
    return path, entries


def _name(arch: str) -> str:
    return f"toolchain-{arch}"


def _check_host(made_from: Recipe) -> None:
    if host_architecture() != made_from.cross.debian:
        raise HostLacks(
            f"the toolchain of {made_from.arch} is for hosts of {made_from.cross.debian},"
            f" and this is one of {host_architecture()}",
            hint="without a toolchain, guests compile for themselves",
        )


def _archive(made_from: Recipe, cache_dir: Path, mirror: Sequence[str]) -> Archive:
    return Archive(cache_dir / "packages", suites=made_from.suites, mirror=mirror)


def _path(arch: str, gcc: str, kind: str) -> Path:
    return resources.images() / f"{arch}.toolchain{'-' if gcc else ''}{gcc}.{kind}"


def _lock_of(arch: str, gcc: str = "") -> tuple[Locked, ...]:
    path = _path(arch, gcc, "lock")
    try:
        return parse_lock(path.read_text(), str(path))
    except FileNotFoundError:
        raise ImageError(f"there is no {path}", hint=f"guestctl toolchain lock {arch}") from None


def _resolve(archive: Archive, made_from: Recipe) -> tuple[Locked, ...]:
    cross, native = made_from.cross, made_from.native
    return (
        *archive.pick(cross.packages, cross.debian, "cross"),
        *archive.pick(made_from.libraries, cross.debian, "library"),
        *archive.pick(native.packages, native.debian, "native"),
    )


def _fetch(
    archive: Archive, made_from: Recipe, entries: tuple[Locked, ...], locked: bool, report: Report
) -> tuple[tuple[Locked, ...], dict[Locked, Path]]:
    def share(part: float) -> None:
        report(Progress("packages", "runs", share=part))

    report(Progress("packages", "starts"))
    try:
        files = archive.fetch(entries, share)
    except PackageGone as error:
        if locked:
            error.hint = f"guestctl toolchain lock {made_from.arch} takes today's versions"
            raise
        report(Progress("packages", "runs", f"{error}: taking today's versions"))
        entries = _resolve(archive, made_from)
        files = archive.fetch(entries, share)
    report(Progress("packages", "done", f"{len(files)} files"))
    return entries, files


def _facts(made_from: Recipe, entries: Sequence[Locked]) -> list[object]:
    return [FORM, repr(made_from), sorted(entry.sha256 for entry in entries)]


def _made(made_from: Recipe, entries: Sequence[Locked], cache_dir: Path) -> Path | None:
    place = Workshop.place(cache_dir, _name(made_from.arch), _facts(made_from, entries))
    return place if (place / FACTS).exists() else None


def _make(step: Step, *, recipe: Recipe, files: Mapping[Locked, Path]) -> None:
    """Fills a toolchain's folder. A program lies in it where the guest has its own."""
    for entry, package in files.items():
        step.run(["dpkg-deb", "--extract", package, step.scratch / entry.group], deadline=300)
    cross, library, native = (step.scratch / group for group in _GROUPS)
    texts = dict(zip(_texts(cross, recipe), _texts(native, recipe), strict=True))
    programs = []
    for role, ours, theirs in recipe.programs():
        data, own = _read(cross, ours), _read(native, theirs)
        for prefix in recipe.prefixes:
            made = _fit(data, own, recipe, texts, prefix)
            goal = step.out / prefix.strip("/") / theirs.removeprefix("/usr/")
            first = step.out / theirs.strip("/")
            if goal == first or made != first.read_bytes():
                _write(goal, made)
        programs.append(Program(role, theirs.removeprefix("/usr/"), identity_of(own)))
    _libraries(step.out, (cross, library))
    (version, configure) = [text.decode(errors="replace") for text in _texts(native, recipe)]
    own_assembler = _read(native, f"/usr/bin/{recipe.triplet}-as")
    Toolchain(
        arch=recipe.arch, triplet=recipe.triplet, major=recipe.major,
        version=f"{_gcc_version(_read(native, _driver(recipe)))} {version.strip()}",
        configure=configure, binutils=_binutils_version(own_assembler),
        moved=recipe.moved, prefixes=recipe.prefixes, programs=tuple(programs), path=step.out,
        packages={f"{e.name}:{e.architecture}": e.version for e in sorted(files)},
    ).save()  # fmt: skip


def _fit(
    data: bytes, native: bytes, recipe: Recipe, texts: Mapping[bytes, bytes], prefix: str
) -> bytes:
    if recipe.moved:
        data = fit_compiler(data, native, recipe.layout, texts, prefix)
    elif data != native:
        raise ImageError(f"the host's compiler is not the one of a guest of {recipe.arch}")
    return fit_program(data)


def _driver(recipe: Recipe) -> str:
    return f"/usr/bin/{recipe.triplet}-{recipe.drivers[0]}"


def _texts(folder: Path, recipe: Recipe) -> tuple[bytes, bytes]:
    return texts_of(_read(folder, _driver(recipe)))


def _gcc_version(driver: bytes) -> str:
    found = re.search(rb"\0(\d+\.\d+\.\d+)\0", driver)
    return found[1].decode() if found else "?"


def _binutils_version(program: bytes) -> str:
    found = re.search(rb"\0\(GNU Binutils[^)]*\) ([0-9.]+)\0", program)
    return found[1].decode() if found else "?"


def _read(folder: Path, path: str) -> bytes:
    try:
        return (folder / path.strip("/")).resolve(strict=True).read_bytes()
    except OSError as error:
        raise ImageError(f"no package of {folder.name} holds {path}: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755)


def _libraries(out: Path, folders: Sequence[Path]) -> None:
    """Copies ld.so, and the libraries that the programs need, and those that these need."""
    goal = out / "lib"
    goal.mkdir()
    waiting = [name for path in out.rglob("*") if path.is_file() for name in _needed(path)]
    while waiting:
        name = waiting.pop()
        if name.startswith("ld-linux") or (goal / name).exists():
            continue
        shutil.copyfile(_library(name, folders), goal / name)
        waiting += _needed(goal / name)
    _write(out / "ld.so", fit_loader(_library("ld-linux-x86-64.so.2", folders).read_bytes()))


def _needed(path: Path) -> list[str]:
    return Elf(path.read_bytes()).needed


def _library(name: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        for base in _LIBRARY_FOLDERS:
            for path in sorted((folder / base).glob(f"*-linux-gnu/{name}")):
                return path.resolve(strict=True)
    raise ImageError(f"no package of the toolchain's libraries holds {name}")
