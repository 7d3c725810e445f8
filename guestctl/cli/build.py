"""`guestctl build`: definitions in, artifacts out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from guestctl.cli.building import Screen
from guestctl.cli.output import json_option, print_json
from guestctl.cli.packages import debian_schemes
from guestctl.cli.settings import setting, table_of_texts, whole_number

if TYPE_CHECKING:
    from guestctl.builder.events import Event, Outcome
    from guestctl.builder.plan import Planner
    from guestctl.builder.report import Recorder
    from guestctl.builder.run import Builder
    from guestctl.builder.store import Artifact
    from guestctl.pool import Pool

__all__ = ["build", "built", "make_builder"]


@click.command()
@click.argument("definitions", type=click.Path(path_type=Path))
@click.argument("component")
@click.option("--arch", required=True, help="The architecture to build for, such as armv5l.")
@click.option("-n", "guests", type=click.IntRange(1), default=2, show_default=True, help="Guests.")
@click.option("--keep-going", is_flag=True, help="After a failure, build what does not need it.")
@click.option("--explain", is_flag=True, help="Say why it will be built, and build nothing.")
@click.option("--log", "show_log", is_flag=True, help="Print the log of its last build.")
@click.option(
    "--max-local",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Fail when more of the compilers' calls than this ran in the guest.",
)
@click.option(
    "--offload",
    type=click.Choice(["auto", "distcc", "off"]),
    default="auto",
    show_default=True,
    help="Whether the host compiles for the guests.",
)
@click.option("--offline", is_flag=True, help="Use sources in the cache only.")
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write where the time went to FILE, as HTML.",
)
@json_option
def build(
    definitions: Path,
    component: str,
    arch: str,
    guests: int,
    keep_going: bool,
    explain: bool,
    show_log: bool,
    max_local: float | None,
    offload: str,
    offline: bool,
    page: Path | None,
    as_json: bool,
) -> None:
    """Build COMPONENT (a chunk, a stratum or a system) of the folder DEFINITIONS.

    What is built already is not built again; docs/definitions.md says what DEFINITIONS hold.

    \b
    Examples:
      guestctl build definitions hello --arch armv5l -n 4
      guestctl build definitions hello --arch armv5l --explain
      guestctl build definitions hello --arch armv5l --report hello.html
    """
    from guestctl.builder.report import Recorder

    with Screen() as screen:
        recorder = Recorder(screen)
        builder = make_builder(definitions, arch, offline, max_local, recorder)
        planner = builder.planner
        screen.calls = builder.calls
        if explain:
            _explain(planner, component, as_json)
            return
        if show_log:
            _print_log(builder, component)
            return
        outcome = builder.build(
            [component], lambda work: _pool(arch, min(guests, work), offload), keep_going=keep_going
        )
    if page is not None:
        _write_page(page, component, outcome, planner, recorder)
    bound = setting("artifact-bytes", whole_number)
    if bound is not None:
        keep = frozenset(each.key for each in outcome.artifacts.values())
        builder.store.collect_garbage(bound, keep)
    _report(outcome, planner, component, as_json)
    outcome.check()


def built(definitions: Path, name: str, arch: str) -> list[Artifact]:
    """The artifacts that `name` stands for, in the order of its strata.

    :raise BuildError: one of them is not built, or damaged.
    """
    from guestctl.errors import BuildError

    builder = make_builder(definitions, arch, offline=True)
    found = []
    for member in builder.planner.project.members(name):
        artifact = builder.store.get(builder.planner.key(member))
        if artifact is None:
            raise BuildError(
                f"{member} is not built", hint=f"guestctl build {definitions} {name} --arch {arch}"
            )
        found.append(artifact)
    return found


def make_builder(
    definitions: Path,
    arch: str,
    offline: bool = False,
    max_local: float | None = None,
    listener: Callable[[Event], None] = lambda _event: None,
) -> Builder:
    """A builder of a folder of definitions in the user's own places."""
    from guestctl import image
    from guestctl.builder.components import load_project
    from guestctl.builder.plan import Planner, Platform
    from guestctl.builder.run import Builder
    from guestctl.builder.sources import Sources
    from guestctl.builder.store import Store
    from guestctl.places import Places

    places = Places.of_user()
    project = load_project(definitions, arch)
    made = image.load(arch, cache_dir=places.cache)
    facts = {"image": made.id, "toolchain": _toolchain(arch, places.cache)}
    platform = Platform(arch, image.recipe(arch).triplet, facts)
    store = Store(places.data)
    aliases = setting("aliases", table_of_texts)
    schemes = debian_schemes(arch, places.cache)
    sources = Sources(places.cache / "sources", aliases, schemes, offline, definitions)
    planner = Planner(project, platform, store, sources)
    return Builder(planner, store, sources, places.data, listener=listener, max_local=max_local)


def _toolchain(arch: str, cache: Path) -> str:
    """What identifies the compilers that the host lends, if it has any."""
    from guestctl.toolchain import installed

    found = installed(arch, cache_dir=cache)
    return found[0].id if found else ""


def _pool(arch: str, size: int, offload: str) -> Pool:
    from guestctl.pool import Pool

    return Pool(arch, size, offload=offload, forks=True)


def _explain(planner: Planner, component: str, as_json: bool) -> None:
    needed = planner.needed([component])
    reasons = {name: planner.explain(name) for name in planner.order if name in needed}
    if as_json:
        print_json({"reasons": reasons})
        return
    for name, lines in reasons.items():
        for line in lines:
            click.echo(f"{name}: {line}")


def _print_log(builder: Builder, component: str) -> None:
    import gzip

    goals = builder.planner.goals([component])
    for name in builder.planner.order:
        if name not in goals:
            continue
        artifact = builder.store.peek(builder.planner.key(name))
        path = builder.logs / f"{name}.log"
        if len(goals) > 1:
            click.echo(f"== {name}")
        if artifact is not None:
            click.echo(gzip.decompress(artifact.log.read_bytes()), nl=False)
        elif path.exists():
            click.echo(path.read_bytes(), nl=False)
        elif len(goals) == 1:
            raise click.ClickException(f"{name} was never built")


def _report(outcome: Outcome, planner: Planner, component: str, as_json: bool) -> None:
    goals = planner.goals([component])
    if as_json:
        print_json(
            {
                "built": outcome.built,
                "cached": outcome.cached,
                "failed": outcome.failed,
                "stopped": outcome.stopped,
                "artifacts": {name: str(each.tar) for name, each in outcome.artifacts.items()},
            }
        )
        return
    counts = {
        "built": outcome.built,
        "there already": outcome.cached,
        "failed": outcome.failed,
        "not built": outcome.stopped,
    }
    told = [f"{len(names)} {what}" for what, names in counts.items() if names]
    click.echo(", ".join(told), err=True)
    for name in planner.order:
        if name in goals and name in outcome.artifacts:
            click.echo(f"{name} {outcome.artifacts[name].key[:16]} {outcome.artifacts[name].tar}")


def _write_page(
    page: Path, component: str, outcome: Outcome, planner: Planner, recorder: Recorder
) -> None:
    """The report of `--report`, of all that the component needs, in the order of building."""
    from guestctl.builder.report import Built, report

    states = dict.fromkeys(outcome.built, "built")
    needed = planner.needed([component])
    components = []
    for name in (name for name in planner.order if name in needed):
        artifact, why = outcome.artifacts.get(name), outcome.failed.get(name, "")
        if artifact is not None:
            state = states.get(name, "cached")
            components.append(Built.of(state, artifact.key, artifact.manifest, artifact.size))
        else:
            components.append(Built(name, "failed" if why else "stopped", why=why))
    platform = planner.platform
    facts = {
        "architecture": platform.arch,
        **platform.facts,
        "seconds of this run": f"{recorder.seconds:.0f}",
    }
    page.write_text(report(f"{component}: a build", facts, components, recorder.spans))
