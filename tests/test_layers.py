"""Imports point down only: each module has a layer, and imports none above its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "guestctl"

# The layers of docs/architecture.md, lowest first.
LAYERS: dict[str, int] = {
    **dict.fromkeys(("errors", "resources", "spec", "targets", "version"), 0),
    **dict.fromkeys(("acl", "line", "entry", "events", "flow", "invocation", "job"), 1),
    **dict.fromkeys(("patience", "pipe", "session", "streams", "vmeta", "wire"), 1),
    **dict.fromkeys(("definitions", "document", "recipe"), 1),
    **dict.fromkeys(("archive", "companion", "packages", "pump", "tree", "view"), 2),
    **dict.fromkeys(("console", "jobs", "journal", "rundir", "tail"), 2),
    **dict.fromkeys(
        ("board", "bridge", "device", "link", "places", "processes", "qemu", "share"), 2
    ),
    **dict.fromkeys(
        ("agent", "conversation", "facts", "guest", "lease", "loss", "metering", "mounting"), 3
    ),
    **dict.fromkeys(("offload", "process", "services", "standing", "stdin"), 3),
    **dict.fromkeys(("bundle", "catalog", "image", "imaging", "system"), 3),
    **dict.fromkeys(("toolchain", "translate"), 3),
    **dict.fromkeys(("handover", "memory", "remembered", "separate", "sockets"), 2),
    **dict.fromkeys(("reproduction", "retrying", "saving", "template"), 3),
    **dict.fromkeys(("cloning",), 4),
    **dict.fromkeys(("builder", "soak"), 4),
    **dict.fromkeys(("birth", "keeper", "launch", "leasing", "spares", "stock"), 4),
    **dict.fromkeys(("caches", "supervisor"), 4),
    **dict.fromkeys(("examine", "plan", "pool", "probes"), 4),
    **dict.fromkeys(("__init__", "__main__", "cli"), 5),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def top(path: Path) -> str:
    """The module's name in LAYERS: its own, or its folder's."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The modules of guestctl that `path` imports when it runs, not for type checkers alone."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "guestctl":
            names |= {f"guestctl.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[1] for name in names if name.startswith("guestctl.")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    layer = LAYERS[top(path)]
    above = {name for name in imported(path) if LAYERS.get(name, 0) > layer}
    assert not above, f"{path.name} is of layer {layer} and imports {sorted(above)}"


def test_every_module_has_a_layer() -> None:
    assert {top(path) for path in modules()} == set(LAYERS)


# What a builder of somebody else's could import: `from guestctl import …`, and these.
PUBLIC = {"builder", "definitions", "document", "errors", "version"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "builder").glob("*.py")), ids=lambda p: p.name)
def test_the_builder_uses_nothing_but_what_is_public(path: Path) -> None:
    names = {name for name in imported(path) if name in LAYERS}
    assert names <= PUBLIC, f"{path.name} imports {sorted(names - PUBLIC)}"
