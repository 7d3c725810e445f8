"""`guestctl build`: definitions in, artifacts out."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from guestctl.cli.output import json_option, print_json

if TYPE_CHECKING:
    from guestctl.builder.plan import Planner
    from guestctl.builder.report import Recorder
    from guestctl.builder.run import Builder, Event, Outcome
    from guestctl.builder.store import Artifact
    from guestctl.pool import Pool

__all__ = ["build", "built"]


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

    with _Screen() as screen:
        recorder = Recorder(screen)
        builder = _builder(definitions, arch, offline, max_local, recorder)
        planner = builder.planner
        if explain:
            _explain(planner, component, as_json)
            return
        if show_log:
            _print_log(builder, component)
            return
        outcome = builder.build(
            [component], lambda work: _pool(arch, min(guests, work)), keep_going=keep_going
        )
    if page is not None:
        _write_page(page, component, outcome, planner, recorder)
    _report(outcome, planner, component, as_json)
    outcome.check()


def built(definitions: Path, name: str, arch: str) -> list[Artifact]:
    """The artifacts that `name` stands for, in the order of its strata.

    :raise BuildError: one of them is not built, or damaged.
    """
    from guestctl.errors import BuildError

    builder = _builder(definitions, arch, True, None, lambda _event: None)
    found = []
    for member in builder.planner.project.members(name):
        artifact = builder.store.get(builder.planner.key(member))
        if artifact is None:
            raise BuildError(
                f"{member} is not built", hint=f"guestctl build {definitions} {name} --arch {arch}"
            )
        found.append(artifact)
    return found


def _builder(
    definitions: Path,
    arch: str,
    offline: bool,
    max_local: float | None,
    listener: Callable[[Event], None],
) -> Builder:
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
    sources = Sources(places.cache / "sources", {}, _debian(arch, places.cache), offline)
    planner = Planner(project, platform, store, sources)
    return Builder(planner, store, sources, places.data, listener=listener, max_local=max_local)


def _debian(arch: str, cache: Path) -> dict[str, Callable[[str], Path]]:
    """Addresses of what the Debian archive has: upstream tarballs, and packages of `arch`."""
    from guestctl import image

    archive = image.archive(arch, cache_dir=cache)

    def upstream(address: str) -> Path:
        return archive.orig_tarball(address.partition(":")[2])[1]

    def package(address: str) -> Path:
        (entry,) = archive.pick([address.partition(":")[2]], image.recipe(arch).debian)
        return archive.fetch([entry])[entry]

    return {"debian": upstream, "deb": package}


def _toolchain(arch: str, cache: Path) -> str:
    """What identifies the compilers that the host lends, if it has any."""
    from guestctl.toolchain import installed

    found = installed(arch, cache_dir=cache)
    return found[0].id if found else ""


def _pool(arch: str, size: int) -> Pool:
    from guestctl.pool import Pool

    return Pool(arch, size)


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

    artifact = builder.store.peek(builder.planner.key(component))
    path = builder.logs / f"{component}.log"
    if artifact is not None:
        click.echo(gzip.decompress(artifact.log.read_bytes()), nl=False)
    elif path.exists():
        click.echo(path.read_bytes(), nl=False)
    else:
        raise click.ClickException(f"{component} was never built")


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


class _Screen:
    """What is built where: a live table on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, tuple[str, str, float]] = {}
        self._live: Any = None
        self._rest = 0.0

    def __enter__(self) -> _Screen:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True), get_renderable=self._table, refresh_per_second=2
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._rest = event.rest
            if event.kind in ("start", "step"):
                guest, _, begin = self._running.get(event.name, (event.guest, "", time.monotonic()))
                self._running[event.name] = (guest, event.text, begin)
            elif event.kind != "waits":
                self._running.pop(event.name, None)
            if event.kind != "step" or not self._live:
                self._line(event)

    def _line(self, event: Event) -> None:
        words = [event.kind, event.text, f"in {event.guest}" if event.guest else ""]
        if event.kind in ("done", "failed", "lost"):
            words.append(f"after {event.seconds:.1f} s")
        text = f"{event.name}: " + " ".join(word for word in words if word)
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            click.echo(text, err=True)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table("component", "guest", "step", "elapsed", box=None)
        now = time.monotonic()
        for name, (guest, step, begin) in sorted(self._running.items()):
            table.add_row(name, guest, step, f"{now - begin:.0f} s")
        if self._running:
            table.caption = f"at least {self._rest:.0f} s to go"
        return table
