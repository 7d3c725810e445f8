"""Recipes and locks: what an image is made from, as text. Pure: no files, no processes.

docs/recipes.md has every key. A recipe is YAML; a lock is one JSON object a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import yaml

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

# libyaml's where it is there: every start of a guest reads a recipe.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ImageError(f"{file}:{line}: not YAML: {problem}") from None
    if node is None:
        raise ImageError(f"{file}:1: the recipe is empty")
    recipe: Recipe = _Reader(file).record(node, Recipe, "")
    return recipe


class _Reader:
    """Turns YAML nodes, which know their lines, into dataclasses."""

    def __init__(self, file: str) -> None:
        self.file = file

    def fail(self, node: yaml.Node, key: str, what: str) -> ImageError:
        return ImageError(f"{self.file}:{node.start_mark.line + 1}: {key or 'recipe'}: {what}")

    def items(self, node: yaml.Node, key: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, key, "must be a mapping")
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for name, value in node.value:
            if name.value in found:
                raise self.fail(name, f"{key}{name.value}", "is given twice")
            found[str(name.value)] = (name, value)
        return found

    def record(self, node: yaml.Node, kind: type[Any], key: str) -> Any:
        items = self.items(node, key)
        prefix = f"{key}." if key else ""
        known = {field.name: field for field in fields(kind)}
        for name, (where, _) in items.items():
            if name.replace("-", "_") not in known:
                hint = ", ".join(sorted(known)).replace("_", "-")
                error = self.fail(where, f"{prefix}{name}", "unknown key")
                error.hint = f"known are {hint}"
                raise error
        values: dict[str, Any] = {}
        for name, field in known.items():
            shown = name.replace("_", "-")
            if shown in items:
                values[name] = self.value(items[shown][1], str(field.type), f"{prefix}{shown}")
            elif field.default is field.default_factory:  # both are MISSING: it has no default
                raise self.fail(node, f"{prefix}{shown}", "is missing")
        return kind(**values)

    def value(self, node: yaml.Node, kind: str, key: str) -> Any:
        return getattr(self, _READ[kind])(node, key)

    def text(self, node: yaml.Node, key: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise self.fail(node, key, "must be a text")
        return str(node.value)

    def number(self, node: yaml.Node, key: str) -> int:
        try:
            return int(self.text(node, key), 0)
        except ValueError:
            raise self.fail(node, key, "must be a whole number") from None

    def sequence(self, node: yaml.Node, key: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.fail(node, key, "must be a list")
        return list(node.value)

    def texts(self, node: yaml.Node, key: str) -> tuple[str, ...]:
        return tuple(self.text(item, key) for item in self.sequence(node, key))

    def lists(self, node: yaml.Node, key: str) -> tuple[tuple[str, ...], ...]:
        return tuple(self.texts(item, key) for item in self.sequence(node, key))

    def table(self, node: yaml.Node, key: str) -> dict[str, str]:
        items = self.items(node, key + ".")
        return {name: self.text(value, f"{key}.{name}") for name, (_, value) in items.items()}

    def kernel(self, node: yaml.Node, key: str) -> Any:
        return self.record(node, Kernel, key)

    def tools(self, node: yaml.Node, key: str) -> Any:
        return self.record(node, Tools, key)

    def static(self, node: yaml.Node, key: str) -> tuple[Any, ...]:
        return tuple(self.record(item, StaticTool, key) for item in self.sequence(node, key))


_READ = {
    "str": "text",
    "int": "number",
    "tuple[str, ...]": "texts",
    "tuple[tuple[str, ...], ...]": "lists",
    "Mapping[str, str]": "table",
    "Kernel": "kernel",
    "Tools": "tools",
    "tuple[StaticTool, ...]": "static",
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
