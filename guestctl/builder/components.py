"""A folder of definitions put together: every component with all that it needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from guestctl.definitions import (
    BUILD_SYSTEMS,
    BuildSystem,
    Chunk,
    Defaults,
    Device,
    Product,
    Reference,
    Stratum,
    System,
    parse_definition,
    steps_of,
)
from guestctl.errors import DefinitionError

__all__ = ["Component", "Project", "load_project", "read_project"]

_SUFFIXES = (".morph", ".def", ".yaml", ".yml")
_MAX_FILE = 1 << 20
# The artifact of a `bootstrap` chunk is seen by those that need it, and is in no system.
_MODES = ("staging", "bootstrap")
_DEVICE_TYPES = ("c", "b", "p")


@dataclass(frozen=True)
class Component:
    """A chunk for one architecture. `needs` are the names of what must be built before it, the
    whole of which its sysroot holds: not only what it names itself.
    """

    chunk: Chunk
    steps: tuple[tuple[str, tuple[str, ...]], ...]
    needs: tuple[str, ...]
    stratum: str = ""

    @property
    def name(self) -> str:
        return self.chunk.name


@dataclass(frozen=True)
class Project:
    """All components of a folder for one architecture, and the systems by name: their components.

    `strata` are the names of the components of each stratum. `folder` is where patches lie.
    """

    components: Mapping[str, Component]
    strata: Mapping[str, tuple[str, ...]]
    systems: Mapping[str, tuple[str, ...]]
    folder: Path = Path()

    def members(self, name: str) -> tuple[str, ...]:
        """The components that `name` stands for: a component, a stratum or a system."""
        if name in self.components:
            return (name,)
        for table in (self.strata, self.systems):
            if name in table:
                return table[name]
        raise DefinitionError(
            f"there is no component, stratum or system {name!r}",
            hint="defined are " + ", ".join([*self.systems, *self.strata, *self.components][:20]),
        )


def load_project(folder: Path, arch: str) -> Project:
    """Reads the definitions in a folder and all folders below it.

    :raise DefinitionError: names file, line and key.
    """
    if not folder.is_dir():
        raise DefinitionError(f"{folder} is not a folder of definitions")
    texts = {}
    for path in _files(folder):
        name = str(path.relative_to(folder))
        if path.stat().st_size > _MAX_FILE:
            raise DefinitionError(f"{name}: is larger than {_MAX_FILE} bytes")
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DefinitionError(f"{name}: cannot be read: {error}") from None
    if not texts:
        raise DefinitionError(
            f"there are no definitions in {folder}", hint="their names end in .morph or .yaml"
        )
    return replace(read_project(texts, arch), folder=folder)


def _files(folder: Path) -> list[Path]:
    wanted = (
        path
        for path in folder.rglob("*")
        if (path.suffix in _SUFFIXES or path.name == "DEFAULTS") and path.is_file()
    )
    return sorted(path for path in wanted if not _hidden(path.relative_to(folder)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_project(texts: Mapping[str, str], arch: str) -> Project:
    """The same from the texts of the files, by their paths relative to the folder."""
    return _Reading(texts, arch).project()


class _Reading:
    """The files of a project while they are put together."""

    def __init__(self, texts: Mapping[str, str], arch: str) -> None:
        self.arch = arch
        self.systems: dict[str, BuildSystem] = dict(BUILD_SYSTEMS)
        self.products: tuple[Product, ...] = ()
        self.files: dict[str, Chunk | Stratum | System] = {}
        for file in sorted(texts):
            record = parse_definition(texts[file], file)
            if isinstance(record, Defaults):
                self.systems.update(record.build_systems)
                self.products += record.split_rules.chunk
            else:
                self.files[file] = record

    def project(self) -> Project:
        strata = {file: each for file, each in self.files.items() if isinstance(each, Stratum)}
        _check_names(strata.values())
        members = {file: self._members(stratum) for file, stratum in strata.items()}
        components: dict[str, Component] = {}
        for file, stratum in strata.items():
            below = tuple(
                chunk.name
                for reference in stratum.build_depends
                for chunk in members[self._stratum(reference)]
            )
            for chunk in members[file]:
                _add(components, self._component(chunk, stratum.name, below))
        for chunk in self._loose(strata.values()):
            _add(components, self._component(chunk, "", ()))
        _check_needs(components)
        return Project(
            components,
            {each.name: _names(members[file]) for file, each in strata.items()},
            dict(self._systems(members)),
        )

    def _members(self, stratum: Stratum) -> tuple[Chunk, ...]:
        """The chunks of a stratum that this architecture has."""
        whole = (self._whole(chunk) for chunk in stratum.chunks)
        return tuple(chunk for chunk in whole if self._wanted(chunk))

    def _whole(self, given: Chunk) -> Chunk:
        """What a stratum says of a chunk, over what the chunk's own file says."""
        if not given.morph:
            return given
        own = self.files.get(given.morph)
        if not isinstance(own, Chunk):
            raise DefinitionError(f"{given.place}: morph: there is no chunk file {given.morph!r}")
        return given.over(own)

    def _loose(self, strata: Iterable[Stratum]) -> Iterator[Chunk]:
        """The chunk files that no stratum names."""
        named = {chunk.morph for stratum in strata for chunk in stratum.chunks}
        for file, record in self.files.items():
            if isinstance(record, Chunk) and file not in named and self._wanted(record):
                yield record

    def _wanted(self, chunk: Chunk) -> bool:
        return not chunk.arch or self.arch in chunk.arch

    def _stratum(self, reference: Reference) -> str:
        if not isinstance(self.files.get(reference.morph), Stratum):
            raise DefinitionError(
                f"{reference.place}: morph: there is no stratum file {reference.morph!r}"
            )
        return reference.morph

    def _systems(
        self, members: Mapping[str, tuple[Chunk, ...]]
    ) -> Iterator[tuple[str, tuple[str, ...]]]:
        for record in self.files.values():
            if isinstance(record, System) and record.arch == self.arch:
                chunks = [
                    chunk
                    for reference in record.strata
                    for chunk in members[self._stratum(reference)]
                    if chunk.build_mode in ("", "staging")
                ]
                yield record.name, _names(chunks)

    def _component(self, chunk: Chunk, stratum: str, below: tuple[str, ...]) -> Component:
        whole = replace(
            chunk,
            build_system=chunk.build_system or "manual",
            build_mode=chunk.build_mode or "staging",
            prefix=chunk.prefix or "/usr",
            products=chunk.products + self.products,
        )
        for key, problem in _problems(whole, self.systems):
            raise DefinitionError(f"{chunk.place}: {chunk.name or 'chunk'}: {key}: {problem}")
        steps = tuple(steps_of(whole, self.systems[whole.build_system]))
        needs = tuple(dict.fromkeys([*below, *whole.build_depends]))
        return Component(whole, steps, needs, stratum)


def _problems(chunk: Chunk, systems: Mapping[str, BuildSystem]) -> Iterator[tuple[str, str]]:
    """What is wrong with a chunk: the key, and what it should be."""
    rules = (
        ("name", bool(chunk.name), "is missing"),
        ("name", "/" not in chunk.name and not chunk.name.startswith("."), "is not a file name"),
        ("build-system", chunk.build_system in systems, f"known are {', '.join(systems)}"),
        ("build-mode", chunk.build_mode in _MODES, f"known are {', '.join(_MODES)}"),
        ("prefix", chunk.prefix.startswith("/"), "must be absolute"),
        ("ref", bool(chunk.repo) == bool(chunk.ref), "repo and ref go together"),
        ("sha256", bool(chunk.tarball) == bool(chunk.sha256), "tarball and sha256 go together"),
        ("sha256", not chunk.sha256 or _is_sha256(chunk.sha256), "must be 64 hexadecimal digits"),
        ("repo", not (chunk.repo and chunk.tarball), "repo or tarball, not both"),
        ("max-jobs", chunk.max_jobs >= 0, "must not be negative"),
        ("name", chunk.name not in chunk.build_depends, "needs itself"),
        *(
            ("devices", _is_device(each), f"{each.filename}: type c, b or p; permissions octal")
            for each in chunk.devices
        ),
        *(
            ("products", not problem, f"{each.artifact}: {problem}")
            for each in chunk.products
            for problem in _product_problems(each)
        ),
    )
    return ((key, problem) for key, good, problem in rules if not good)


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _product_problems(product: Product) -> Iterator[str]:
    if not product.artifact.strip("-.") or "/" in product.artifact:
        yield "is not a file name"
    for text in product.include:
        try:
            re.compile(text)
        except re.error as error:
            yield f"{text!r} is no regular expression: {error}"


def _is_device(device: Device) -> bool:
    mode = device.permissions
    return (
        device.type in _DEVICE_TYPES
        and bool(mode)
        and len(mode) <= 5
        and set(mode) <= set("01234567")
    )


def _names(chunks: Iterable[Chunk]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chunk.name for chunk in chunks))


def _check_names(strata: Iterable[Stratum]) -> None:
    seen: dict[str, Stratum] = {}
    for stratum in strata:
        other = seen.setdefault(stratum.name, stratum)
        if other is not stratum:
            raise DefinitionError(
                f"{stratum.place}: {stratum.name}: the name is taken, by {other.place}"
            )


def _add(components: dict[str, Component], new: Component) -> None:
    other = components.get(new.name)
    if other is not None:
        raise DefinitionError(
            f"{new.chunk.place}: {new.name}: the name is taken, by {other.chunk.place}"
        )
    components[new.name] = new


def _check_needs(components: Mapping[str, Component]) -> None:
    for component in components.values():
        for name in component.needs:
            if name not in components:
                raise DefinitionError(
                    f"{component.chunk.place}: {component.name}: build-depends:"
                    f" there is no {name!r}"
                )
