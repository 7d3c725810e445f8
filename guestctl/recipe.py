"""Recipes and locks: what an image is made from, as text. Pure: no files, no processes.

docs/recipes.md has every key. A recipe is YAML; a lock is one JSON object a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

from guestctl.document import Document, record_of, records_of
from guestctl.errors import ImageError

__all__ = [
    "Kernel",
    "Locked",
    "Recipe",
    "StaticTool",
    "Tools",
    "dump_lock",
    "parse_lock",
    "parse_recipe",
]


@dataclass(frozen=True)
class Kernel:
    """The kernel: `package` is Debian's source package of it, `config` the list of symbols.

    `output` is the file of the build tree that QEMU boots; with `load`, its physical address,
    it is wrapped as an uImage, which spares the guest from decompressing itself.
    """

    package: str
    config: str
    arch: str
    make: tuple[str, ...]
    output: str
    dtb: str = ""
    load: int = 0


@dataclass(frozen=True)
class StaticTool:
    """A Debian source package that is built static: `outputs` maps built files to names."""

    source: str
    outputs: Mapping[str, str]
    make: tuple[tuple[str, ...], ...] = ((),)
    configure: tuple[str, ...] = ()
    links: tuple[str, ...] = ()  # further names of the first output
    links_of: str = ""  # a binary package: each of its commands is such a name
    links_except: tuple[str, ...] = ()
    prepare: tuple[tuple[str, ...], ...] = ()  # commands to run in the unpacked source


@dataclass(frozen=True)
class Tools:
    """What /tools holds: `programs` of the root, patched, and `trees` copied with them."""

    programs: tuple[str, ...]
    trees: tuple[str, ...]
    binutils: tuple[str, ...]  # those that gcc looks for beside itself


@dataclass(frozen=True)
class Recipe:
    """All that an image of `arch` is made from."""

    arch: str
    debian: str  # Debian's name of the architecture
    triplet: str  # the directory of its libraries, and what configure calls the host
    cross: str  # prefix of the compiler's name
    loader: str  # the dynamic loader, as programs name it
    suites: tuple[str, ...]
    kernel: Kernel
    root: tuple[str, ...]
    host: Mapping[str, str]
    links: Mapping[str, str]
    static: tuple[StaticTool, ...]
    static_libraries: tuple[str, ...]
    tools: Tools
    python: str = ""  # the host's, of the version that the root has: it writes the bytecode


@dataclass(frozen=True, order=True)
class Locked:
    """One file of the archive that goes into an image.

    `group` says what for: kernel, root, static (libraries) or source. `name` is the package,
    `architecture` Debian's (`source` for a file of a source package), `size` is in bytes and
    `filename` is relative to the archive.
    """

    group: str
    name: str
    version: str
    architecture: str
    filename: str
    size: int
    sha256: str


def parse_recipe(text: str, file: str) -> Recipe:
    """Reads a recipe; raises ImageError that names file, line and key."""
    document = Document(
        text,
        file,
        what="recipe",
        error=ImageError,
        readers=_READERS,
        guide="docs/recipes.md says what a recipe has",
    )
    recipe: Recipe = document.record(document.root, Recipe)
    return recipe


_READERS = {
    "Kernel": record_of(Kernel),
    "Tools": record_of(Tools),
    "tuple[StaticTool, ...]": records_of(StaticTool),
}


def parse_lock(text: str, file: str) -> tuple[Locked, ...]:
    """Reads a lock; raises ImageError that names file and line."""
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            record = json.loads(line)
            entry = Locked(**record)
            for field in fields(Locked):
                if type(record[field.name]).__name__ != field.type:
                    raise TypeError(f"{field.name} must be {field.type}")
            if len(bytes.fromhex(entry.sha256)) != 32:
                raise ValueError("sha256 must have 64 digits")
        except (TypeError, ValueError, KeyError) as error:
            problem = str(error).replace("Locked.__init__() ", "")
            raise ImageError(
                f"{file}:{number}: not a lock entry: {problem}",
                hint="guestctl image lock makes the file anew",
            ) from None
        entries.append(entry)
    return tuple(entries)


def dump_lock(entries: Iterable[Locked], arch: str) -> str:
    """Writes a lock, sorted, so that its differences are easy to read."""
    lines = [f"# made by `guestctl image lock {arch}`: do not edit"]
    lines += [json.dumps(asdict(entry), ensure_ascii=False) for entry in sorted(set(entries))]
    return "\n".join(lines) + "\n"
