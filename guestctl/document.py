"""YAML that people write, read into dataclasses: errors name file, line and key. Pure.

What a dataclass declares is what may be written: its fields are the known keys (`_` is written
`-`), those without a default must be given, and a field's annotation says how its value is read.
A field made by `place()` is not a key: it gets the file and line where the record begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, fields
from typing import Any

import yaml

from guestctl.errors import GuestctlError

__all__ = ["Document", "Read", "place", "record_of", "records_by_name", "records_of"]

# libyaml's where it is there: every start of a guest reads a recipe.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Reads the value of a key; the key is for messages.
Read = Callable[["Document", yaml.Node, str], Any]

_PLACE = "place"


def place() -> Any:
    """A field of a record that is told where it was written: `FILE:LINE`."""
    return field(default="", compare=False, metadata={_PLACE: True})


class Document:
    """One YAML text. `readers` adds to the annotations that are understood, `guide` is the hint of
    errors that have none of their own.

    :raise GuestctlError: as `error`, from every method: `FILE:LINE: KEY: what is wrong`.
    """

    def __init__(
        self,
        text: str,
        file: str,
        *,
        what: str,
        error: type[GuestctlError],
        readers: Mapping[str, Read] | None = None,
        guide: str = "",
    ) -> None:
        self.file = file
        self._guide = guide
        self._what = what
        self._error = error
        self._readers = {**_READERS, **(readers or {})}
        self.root = self._compose(text)

    def _compose(self, text: str) -> yaml.Node:
        try:
            node = yaml.compose(text, Loader=_Loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark else 1
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise self._error(
                f"{self.file}:{line}: not YAML: {problem}", hint=self._guide
            ) from None
        if node is None:
            raise self._error(f"{self.file}:1: the {self._what} is empty", hint=self._guide)
        assert isinstance(node, yaml.Node)
        return node

    def fail(self, node: yaml.Node, key: str, problem: str, *, hint: str = "") -> GuestctlError:
        """The error that says what is wrong with `key` at `node`."""
        place = f"{self.file}:{node.start_mark.line + 1}"
        return self._error(f"{place}: {key or self._what}: {problem}", hint=hint or self._guide)

    def items(self, node: yaml.Node, key: str = "") -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """The keys of a mapping, each with the nodes of the key and of its value."""
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, key, "must be a mapping")
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for name, value in node.value:
            if name.value in found:
                raise self.fail(name, f"{key}{name.value}", "is given twice")
            found[str(name.value)] = (name, value)
        return found

    def record(self, node: yaml.Node, kind: type[Any], key: str = "") -> Any:
        """A mapping as an instance of the dataclass `kind`."""
        items = self.items(node, key)
        prefix = f"{key}." if key else ""
        known = {each.name: each for each in fields(kind) if not each.metadata.get(_PLACE)}
        for name, (where, _) in items.items():
            if name.replace("-", "_") not in known or "_" in name:
                hint = ", ".join(sorted(known)).replace("_", "-")
                raise self.fail(where, f"{prefix}{name}", "unknown key", hint=f"known are {hint}")
        values: dict[str, Any] = {}
        for name, each in known.items():
            shown = name.replace("_", "-")
            if shown in items:
                values[name] = self.value(items[shown][1], str(each.type), f"{prefix}{shown}")
            elif each.default is each.default_factory:  # both are MISSING: it has no default
                raise self.fail(node, f"{prefix}{shown}", "is missing")
        for each in fields(kind):
            if each.metadata.get(_PLACE):
                values[each.name] = f"{self.file}:{node.start_mark.line + 1}"
        return kind(**values)

    def value(self, node: yaml.Node, annotation: str, key: str) -> Any:
        """A value as the annotation of its field says."""
        return self._readers[annotation](self, node, key)

    def text(self, node: yaml.Node, key: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise self.fail(node, key, "must be a text")
        return str(node.value)

    def number(self, node: yaml.Node, key: str) -> int:
        try:
            return int(self.text(node, key), 0)
        except ValueError:
            raise self.fail(node, key, "must be a whole number") from None

    def flag(self, node: yaml.Node, key: str) -> bool:
        word = self.text(node, key).lower()
        if word not in _FLAGS:
            raise self.fail(node, key, "must be true or false")
        return _FLAGS[word]

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


_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

_READERS: dict[str, Read] = {
    "str": Document.text,
    "int": Document.number,
    "bool": Document.flag,
    "tuple[str, ...]": Document.texts,
    "tuple[tuple[str, ...], ...]": Document.lists,
    "Mapping[str, str]": Document.table,
}


def records_by_name(kind: type[Any]) -> Read:
    """Reads a mapping of names to records."""

    def read(document: Document, node: yaml.Node, key: str) -> Any:
        items = document.items(node, key + ".")
        return {
            name: document.record(value, kind, f"{key}.{name}")
            for name, (_, value) in items.items()
        }

    return read


def record_of(kind: type[Any]) -> Read:
    """Reads a nested record."""
    return lambda document, node, key: document.record(node, kind, key)


def records_of(kind: type[Any]) -> Read:
    """Reads a list of records."""

    def read(document: Document, node: yaml.Node, key: str) -> Any:
        return tuple(document.record(item, kind, key) for item in document.sequence(node, key))

    return read
