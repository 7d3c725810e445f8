"""Cache keys: what an artifact depends on, as a hash, and in words for `build --explain`.

Two builds with one key give one artifact. A key covers what is said of the component (not where it
is said, nor its description), the patches' bytes, the keys of all that is in its sysroot, the image
and toolchain, and the version of the rules in this package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from guestctl.builder.components import Component
from guestctl.builder.graph import closure, in_order

__all__ = ["RULES", "Inputs", "differences", "inputs_of_all"]

# Counts up when the same inputs would give another artifact.
RULES = 4

# What does not change the artifact.
_IGNORED = ("place", "description", "unpetrify_ref", "morph", "kind")


@dataclass(frozen=True)
class Inputs:
    """All that goes into an artifact. `platform` is the image's and the toolchain's identity,
    `sysroot` the keys of what the build sees, by name.
    """

    name: str
    arch: str
    rules: int
    platform: Mapping[str, str]
    definition: Mapping[str, Any]
    patches: Mapping[str, str]
    sysroot: Mapping[str, str]

    @property
    def key(self) -> str:
        """64 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def inputs_of_all(
    components: Mapping[str, Component],
    arch: str,
    platform: Mapping[str, str],
    digest: Callable[[str], str],
) -> dict[str, Inputs]:
    """The inputs of every component. `digest` is the SHA-256 of a patch file."""
    graph = {name: component.needs for name, component in components.items()}
    keys: dict[str, str] = {}
    found = {}
    for name in in_order(graph):
        component = components[name]
        sysroot = sorted(closure(graph, component.needs))
        found[name] = Inputs(
            name=name,
            arch=arch,
            rules=RULES,
            platform=dict(platform),
            definition=_definition(component),
            patches={each.file: digest(each.file) for each in component.chunk.patches},
            sysroot={need: keys[need] for need in sysroot},
        )
        keys[name] = found[name].key
    return found


def _definition(component: Component) -> dict[str, Any]:
    """What is said of a component, with the commands that are run for it."""
    said = _plain(asdict(component.chunk))
    kept = {
        key: value
        for key, value in said.items()
        if key not in _IGNORED and not key.endswith("_commands") and key != "build_depends"
    }
    return {**kept, "steps": [[step, list(commands)] for step, commands in component.steps]}


def _plain(value: Any) -> Any:
    """The same without places, and with what JSON would make of it."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if key != "place"}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value


def differences(old: Mapping[str, Any], new: Inputs) -> list[str]:
    """What changed since `old` (an Inputs as JSON gives it back), in words."""
    found = []
    now = asdict(new)
    for part in ("rules", "platform", "definition", "patches", "sysroot"):
        before, after = old.get(part), now[part]
        if before == after:
            continue
        if not isinstance(before, dict) or not isinstance(after, dict):
            found.append(f"{part}: {before} → {after}")
            continue
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                found.append(f"{part}: {key} {_change(key in before, key in after)}")
    return found


def _change(before: bool, after: bool) -> str:
    return {(True, True): "changed", (True, False): "is gone", (False, True): "is new"}[
        before, after
    ]
