"""Definitions: what to build, from what, and how, as text. Pure: no files, no processes.

The format is Baserock's as YBD reads it: chunks, strata, systems, and a file DEFAULTS of build
systems. docs/definitions.md has every key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from guestctl.document import Document, place, record_of, records_by_name, records_of
from guestctl.errors import DefinitionError

__all__ = [
    "BUILD_SYSTEMS",
    "STEPS",
    "BuildSystem",
    "Chunk",
    "Defaults",
    "Device",
    "Patch",
    "Product",
    "Reference",
    "Stratum",
    "System",
    "parse_definition",
    "steps_of",
]

# The steps of a build, in order; each may have commands that run before and after it.
STEPS = tuple(
    f"{when}{step}"
    for step in ("configure", "build", "test", "install", "strip")
    for when in ("pre-", "", "post-")
)


@dataclass(frozen=True)
class Commands:
    """Shell commands by step. None: not said, so that the build system's are used."""

    pre_configure_commands: tuple[str, ...] | None = None
    configure_commands: tuple[str, ...] | None = None
    post_configure_commands: tuple[str, ...] | None = None
    pre_build_commands: tuple[str, ...] | None = None
    build_commands: tuple[str, ...] | None = None
    post_build_commands: tuple[str, ...] | None = None
    pre_test_commands: tuple[str, ...] | None = None
    test_commands: tuple[str, ...] | None = None
    post_test_commands: tuple[str, ...] | None = None
    pre_install_commands: tuple[str, ...] | None = None
    install_commands: tuple[str, ...] | None = None
    post_install_commands: tuple[str, ...] | None = None
    pre_strip_commands: tuple[str, ...] | None = None
    strip_commands: tuple[str, ...] | None = None
    post_strip_commands: tuple[str, ...] | None = None

    def of_step(self, step: str) -> tuple[str, ...] | None:
        commands: tuple[str, ...] | None = getattr(self, f"{step.replace('-', '_')}_commands")
        return commands


@dataclass(frozen=True)
class BuildSystem(Commands):
    """The commands of a build system, as DEFAULTS or the table below gives them."""


@dataclass(frozen=True)
class Patch:
    """A file of the definitions that is applied to the source with `patch -pSTRIP`."""

    file: str
    strip: int = 1


@dataclass(frozen=True)
class Device:
    """A device node that the artifact gets. `type` is c, b or p; `permissions` octal digits."""

    filename: str
    type: str
    major: int = 0
    minor: int = 0
    permissions: str = "0600"
    uid: int = 0
    gid: int = 0
    place: str = place()


@dataclass(frozen=True)
class Product:
    """A part of an artifact: the paths that one of the regular expressions `include` matches as a
    whole. A name that begins with `-` is added to the chunk's.
    """

    artifact: str
    include: tuple[str, ...]
    place: str = place()


@dataclass(frozen=True)
class Chunk(Commands):
    """One component, in a file of its own or in a stratum, which may point to such a file.

    The source is `repo` with `ref`, or `tarball` with `sha256`, or nothing.
    """

    name: str = ""
    kind: str = ""
    description: str = ""
    morph: str = ""
    repo: str = ""
    ref: str = ""
    unpetrify_ref: str = ""
    tarball: str = ""
    sha256: str = ""
    patches: tuple[Patch, ...] = ()
    build_system: str = ""
    build_mode: str = ""
    build_depends: tuple[str, ...] = ()
    prefix: str = ""
    max_jobs: int = 0
    arch: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    products: tuple[Product, ...] = ()
    place: str = place()

    def over(self, other: Chunk) -> Chunk:
        """What this one says, and where it says nothing, what `other` says."""
        said = {key: value for key, value in vars(self).items() if value != getattr(_BLANK, key)}
        return replace(other, **said)


_BLANK = Chunk()


@dataclass(frozen=True)
class Reference:
    """A stratum that another one, or a system, names by the path of its file."""

    morph: str
    name: str = ""
    place: str = place()


@dataclass(frozen=True)
class Stratum:
    """Chunks that belong together. Each of them may need all chunks of `build_depends`."""

    name: str
    kind: str
    chunks: tuple[Chunk, ...]
    description: str = ""
    build_depends: tuple[Reference, ...] = ()
    place: str = place()


@dataclass(frozen=True)
class System:
    """What becomes a root file system: the artifacts of the chunks of its strata."""

    name: str
    kind: str
    arch: str
    strata: tuple[Reference, ...]
    description: str = ""
    place: str = place()


@dataclass(frozen=True)
class SplitRules:
    """Products that every chunk has, after its own."""

    chunk: tuple[Product, ...] = ()


@dataclass(frozen=True)
class Defaults:
    """The file DEFAULTS."""

    build_systems: Mapping[str, BuildSystem] = field(default_factory=dict)
    split_rules: SplitRules = SplitRules()


_KINDS = {"chunk": Chunk, "stratum": Stratum, "system": System}

_READERS = {
    "tuple[str, ...] | None": Document.texts,
    "tuple[Patch, ...]": records_of(Patch),
    "tuple[Device, ...]": records_of(Device),
    "tuple[Product, ...]": records_of(Product),
    "tuple[Chunk, ...]": records_of(Chunk),
    "tuple[Reference, ...]": records_of(Reference),
    "Mapping[str, BuildSystem]": records_by_name(BuildSystem),
    "BuildSystem": record_of(BuildSystem),
    "SplitRules": record_of(SplitRules),
}


def parse_definition(text: str, file: str) -> Chunk | Stratum | System | Defaults:
    """Reads one file; raises DefinitionError that names file, line and key."""
    document = Document(
        text,
        file,
        what="definition",
        error=DefinitionError,
        readers=_READERS,
        guide="docs/definitions.md says what a definition has",
    )
    if file.rpartition("/")[2] == "DEFAULTS":
        defaults: Defaults = document.record(document.root, Defaults)
        return defaults
    where, kind = document.items(document.root).get("kind", (document.root, None))
    if kind is None:
        raise document.fail(where, "kind", "is missing", hint=f"one of {', '.join(_KINDS)}")
    shape = _KINDS.get(document.text(kind, "kind"))
    if shape is None:
        raise document.fail(kind, "kind", "unknown", hint=f"known are {', '.join(_KINDS)}")
    record: Chunk | Stratum | System = document.record(document.root, shape)
    if not record.name:
        raise document.fail(document.root, "name", "is missing")
    return record


def steps_of(chunk: Chunk, system: BuildSystem) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The steps of a chunk that have commands, with them, in the order in which they run."""
    for step in STEPS:
        own = chunk.of_step(step)
        commands = system.of_step(step) if own is None else own
        if commands:
            yield step, commands


def _system(**commands: tuple[str, ...]) -> BuildSystem:
    return BuildSystem(**{f"{step}_commands": lines for step, lines in commands.items()})


# What Baserock's own DEFAULTS do, for the build systems that are in use.
BUILD_SYSTEMS: Mapping[str, BuildSystem] = {
    "manual": BuildSystem(),
    "make": _system(
        build=("make",),
        install=('make DESTDIR="$DESTDIR" PREFIX="$PREFIX" prefix="$PREFIX" install',),
    ),
    "autotools": _system(
        configure=(
            "[ -x configure ] || if [ -x autogen.sh ]; then NOCONFIGURE=1 ./autogen.sh;"
            " else autoreconf -fi; fi",
            './configure --build="$BUILD" --host="$HOST" --prefix="$PREFIX"'
            " --sysconfdir=/etc --localstatedir=/var",
        ),
        build=("make",),
        install=('make DESTDIR="$DESTDIR" install',),
    ),
    "cmake": _system(
        configure=(
            'cmake -S . -B _build -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$PREFIX"'
            " -DCMAKE_INSTALL_LIBDIR=lib",
        ),
        build=('cmake --build _build --parallel "$JOBS"',),
        install=('DESTDIR="$DESTDIR" cmake --install _build',),
    ),
    "meson": _system(
        configure=('meson setup _build --buildtype=release --prefix="$PREFIX" --libdir=lib',),
        build=('ninja -C _build -j "$JOBS"',),
        install=('DESTDIR="$DESTDIR" ninja -C _build install',),
    ),
}
