"""What has to be built, and why: the keys of all components against what the store holds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from guestctl.builder.components import Component, Project
from guestctl.builder.graph import closure, in_order
from guestctl.builder.keys import Inputs, differences, inputs_of_all
from guestctl.builder.sources import Sources
from guestctl.builder.store import Artifact, Store
from guestctl.errors import DefinitionError

__all__ = ["Planner", "Platform"]

_MAX_PATCH = 16 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Platform:
    """What builds run on: the architecture, configure's name of it, and what else keys cover
    (image, toolchain) by name.
    """

    arch: str
    triplet: str
    facts: Mapping[str, str]


class Planner:
    """The components of a project with their keys; `order` has each after what it needs.

    Making one asks repositories what a moving `ref` means now.

    :raise DefinitionError: components need each other, or a patch is missing.
    :raise BuildError: a repository cannot be asked.
    """

    def __init__(
        self, project: Project, platform: Platform, store: Store, sources: Sources
    ) -> None:
        self.project = project
        self.platform = platform
        self._store = store
        self._graph = {name: each.needs for name, each in project.components.items()}
        self.order = in_order(self._graph)
        self.components = {
            name: _pinned(each, sources) for name, each in project.components.items()
        }
        self.inputs: dict[str, Inputs] = inputs_of_all(
            self.components, platform.arch, platform.facts, self._patch_digest
        )

    def key(self, name: str) -> str:
        return self.inputs[name].key

    def needed(self, names: Iterable[str]) -> set[str]:
        """What `names` (components, strata, systems) stand for, with all that it needs."""
        return closure(self._graph, self.goals(names))

    def goals(self, names: Iterable[str]) -> set[str]:
        """What `names` stand for."""
        return {member for name in names for member in self.project.members(name)}

    def missing(self, names: Iterable[str]) -> list[str]:
        """What has to be built for `names`, in order.

        Artifacts that will be read are checked; a damaged one is to be built again.
        """
        goals = self.goals(names)
        needed = closure(self._graph, goals)
        missing = {name for name in needed if self._store.peek(self.key(name)) is None}
        checked: set[str] = set()
        while unchecked := (self._read_by(missing) | goals) - missing - checked:
            checked |= unchecked
            missing |= {name for name in unchecked if self._store.get(self.key(name)) is None}
        return [name for name in self.order if name in missing]

    def graph_of(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """What each of `names` needs: everything in its sysroot, not only what it names itself."""
        return {name: tuple(self.inputs[name].sysroot) for name in names}

    def _read_by(self, names: Iterable[str]) -> set[str]:
        return {need for name in names for need in self.inputs[name].sysroot}

    def explain(self, name: str) -> list[str]:
        """Why a component will be built: what changed since the last artifact of that name."""
        if self._store.peek(self.key(name)) is not None:
            return ["it is built already"]
        last = self._newest.get(name)
        if last is None:
            return ["it was never built"]
        return differences(last.manifest.get("inputs", {}), self.inputs[name])

    @cached_property
    def _newest(self) -> dict[str, Artifact]:
        """Of each component the artifact that was used last, as the store was when first asked."""
        arch = self.platform.arch
        found: dict[str, Artifact] = {}
        for artifact in self._store.all():
            if artifact.manifest.get("arch") == arch:
                found.setdefault(artifact.name, artifact)
        return found

    def past_seconds(self) -> dict[str, float]:
        """The seconds that components took when they were built last, for those that were."""
        return {
            name: float(sum(each.manifest.get("seconds", {}).values()))
            for name, each in self._newest.items()
        }

    def patch(self, file: str) -> Path:
        """The path of a patch; raises DefinitionError when it is not a file of the project."""
        path = self.project.folder / file
        inside = path.resolve().is_relative_to(self.project.folder.resolve())
        if not inside or not path.is_file() or path.stat().st_size > _MAX_PATCH:
            raise DefinitionError(f"patches: {file}: there is no such file in the definitions")
        return path

    def _patch_digest(self, file: str) -> str:
        return hashlib.sha256(self.patch(file).read_bytes()).hexdigest()


def _pinned(component: Component, sources: Sources) -> Component:
    """The component with the commit that its `ref` means now, where that can move."""
    chunk = component.chunk
    if not chunk.repo or _COMMIT.fullmatch(chunk.ref):
        return component
    return replace(component, chunk=replace(chunk, ref=sources.commit(chunk)))
