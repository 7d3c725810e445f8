"""A build as a page of HTML: where the time went, what each component took, who compiled.

The page holds all that it shows: no script, no font, no picture of elsewhere. Pure, but for the
clock that a recorder is given.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from guestctl.builder.events import Event

__all__ = ["Built", "Recorder", "Span", "report"]

# Steps of a build, as they are shown: before, at and after each in one colour.
_COLOURS = {
    "stage": "#8c8c8c",
    "prepare": "#c4b7a6",
    "configure": "#e69f00",
    "build": "#0072b2",
    "test": "#009e73",
    "install": "#cc79a7",
    "strip": "#d55e00",
    "devices": "#7f3c8d",
    "collect": "#56b4e9",
}
_OTHER = "#444444"
_WHERE = {"offload": "the host", "distcc": "the host, by distcc", "guest": "the guest"}
_ENDS = ("done", "failed", "lost", "stopped")

_WIDTH, _LABEL, _ROW = 960, 170, 22
_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; font-size: 13px }
th, td { text-align: right; padding: .15rem .5rem; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
td.text { text-align: left }
svg { width: 100%; height: auto }
.failed { color: #b00020 }
"""


@dataclass(frozen=True)
class Span:
    """One step of a component in a guest; times in seconds since the build began."""

    name: str
    guest: str
    step: str
    begin: float
    end: float


@dataclass(frozen=True)
class Built:
    """A component: `state` is built, cached, failed or stopped; `seconds` by step and `calls` by
    place are those of the build that made its artifact, however long ago.
    """

    name: str
    state: str
    key: str = ""
    guest: str = ""
    size: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)
    why: str = ""

    @classmethod
    def of(cls, state: str, key: str, manifest: Mapping[str, Any], size: int) -> Built:
        """From an artifact's manifest."""
        counts = manifest.get("ledger", {})
        calls = {where: int(counts[where]) for where in _WHERE if where in counts}
        name, guest = str(manifest["name"]), str(manifest.get("guest", ""))
        return cls(name, state, key, guest, size, manifest.get("seconds", {}), calls)


class Recorder:
    """Listens to a build, and passes on what it hears. Its spans are what each guest did when."""

    def __init__(
        self,
        listener: Callable[[Event], None] = lambda _event: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener, self._clock = listener, clock
        self._begin = clock()
        self._lock = threading.Lock()
        self._open: dict[str, tuple[str, str, float]] = {}
        self._spans: list[Span] = []
        self._now = 0.0

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._now = now = self._clock() - self._begin
            guest, step, since = self._open.get(event.name, (event.guest, "", now))
            if event.kind in ("step", *_ENDS) and step:
                self._spans.append(Span(event.name, guest, step, since, now))
            if event.kind in ("start", "step"):
                self._open[event.name] = (guest or event.guest, event.text, now)
            elif event.kind in _ENDS:
                self._open.pop(event.name, None)
        self._listener(event)

    @property
    def spans(self) -> tuple[Span, ...]:
        with self._lock:
            return tuple(self._spans)

    @property
    def seconds(self) -> float:
        """From the recorder's making to the last event."""
        return self._now


def report(
    title: str, facts: Mapping[str, str], components: Sequence[Built], spans: Sequence[Span] = ()
) -> str:
    """The page. `facts` are shown as they are; `components` come in the order given."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _facts({**facts, **_counts(components)}),
        _failures(components),
        "<h2>What each component took</h2>",
        _bars(components),
    ]
    if spans:
        parts += ["<h2>What each guest did</h2>", _lanes(spans)]
    parts += ["<h2>Who compiled</h2>", _ledger(components)]
    parts += ["<h2>All figures</h2>", _table(components), "</body></html>"]
    return "\n".join(part for part in parts if part) + "\n"


def _shown(step: str) -> str:
    """The step that a step belongs to: what runs before and after counts as it."""
    return step.removeprefix("pre-").removeprefix("post-")


def _split(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by shown step, in the order of _COLOURS."""
    sums: Counter[str] = Counter()
    for step, spent in seconds.items():
        sums[_shown(step)] += float(spent)  # type: ignore[assignment]
    order = [*_COLOURS, *sorted(set(sums) - set(_COLOURS))]
    return {step: sums[step] for step in order if sums[step]}


def _total(component: Built) -> float:
    return float(sum(component.seconds.values()))


def _facts(facts: Mapping[str, str]) -> str:
    rows = (
        f'<tr><td>{escape(name)}</td><td class="text">{escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f"<table>{''.join(rows)}</table>"


def _counts(components: Sequence[Built]) -> dict[str, str]:
    states = Counter(each.state for each in components)
    found = {"components": ", ".join(f"{count} {state}" for state, count in states.items())}
    found["seconds of all builds"] = f"{sum(map(_total, components)):.0f}"
    return found


def _failures(components: Sequence[Built]) -> str:
    lines = (
        f'<p class="failed">{escape(each.name)}: {escape(each.why or each.state)}</p>'
        for each in components
        if each.state in ("failed", "stopped")
    )
    return "".join(lines)


def _legend(steps: Iterable[str]) -> Iterator[str]:
    """What the colours of these steps mean, in a line."""
    used, x = {_shown(step) for step in steps}, _LABEL
    for step, colour in _COLOURS.items():
        if step in used:
            yield f'<rect x="{x}" y="4" width="10" height="10" fill="{colour}"/>'
            yield _text(x + 14, 13, step)
            x += 80


def _bars(components: Sequence[Built]) -> str:
    """One bar a component, the longest first, split into its steps."""
    rows = sorted((each for each in components if _total(each)), key=_total, reverse=True)
    scale = (_WIDTH - _LABEL - 70) / max(map(_total, rows), default=1.0)
    shapes = list(_legend(step for each in rows for step in each.seconds))
    for number, each in enumerate(rows, 1):
        y, x = number * _ROW, float(_LABEL)
        shapes.append(_text(_LABEL - 8, y + 15, each.name, "end"))
        for step, spent in _split(each.seconds).items():
            shapes.append(_box(x, y, spent * scale, step, f"{each.name}: {step} {spent:.1f} s"))
            x += spent * scale
        shapes.append(_text(x + 6, y + 15, f"{_total(each):.0f} s"))
    return _svg((len(rows) + 1) * _ROW, shapes)


def _lanes(spans: Sequence[Span]) -> str:
    """One lane a guest, from the first second of the build to the last."""
    guests = sorted({span.guest for span in spans}, key=lambda name: (len(name), name))
    last = max(span.end for span in spans)
    scale = (_WIDTH - _LABEL - 10) / (last or 1.0)
    shapes = [_text(_LABEL - 8, guests.index(g) * _ROW + 15, g, "end") for g in guests]
    for span in spans:
        x, y = _LABEL + span.begin * scale, guests.index(span.guest) * _ROW
        told = f"{span.name}: {span.step}, {span.begin:.0f} to {span.end:.0f} s"
        shapes.append(_box(x, y, (span.end - span.begin) * scale, _shown(span.step), told))
    bottom = len(guests) * _ROW
    shapes += [
        _text(_LABEL, bottom + 14, "0"),
        _text(_WIDTH - 10, bottom + 14, f"{last:.0f} s", "end"),
    ]
    return _svg(bottom + _ROW, shapes)


def _ledger(components: Sequence[Built]) -> str:
    calls: Counter[str] = Counter()
    for each in components:
        calls.update(each.calls)
    total = calls.total()
    if not total:
        return "<p>No call of a compiler, linker or archiver is in the ledgers.</p>"
    rows = (
        f"<tr><td>{name}</td><td>{number}</td><td>{100 * number / total:.1f} %</td></tr>"
        for name, number in ((name, calls[where]) for where, name in _WHERE.items())
    )
    heads = "<tr><th>calls carried out by</th><th>calls</th><th>share</th></tr>"
    return f"<table>{heads}{''.join(rows)}</table>"


def _table(components: Sequence[Built]) -> str:
    used = {step for each in components for step in _split(each.seconds)}
    steps = [step for step in (*_COLOURS, *sorted(used - set(_COLOURS))) if step in used]
    heads = ["component", "state", *steps, "seconds", *_WHERE, "KiB", "guest", "key"]
    lines = ["<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    for each in components:
        split = _split(each.seconds)
        cells = [each.name, each.state]
        cells += [f"{split[step]:.1f}" if step in split else "" for step in steps]
        cells += [f"{_total(each):.1f}", *(str(each.calls.get(where, "")) for where in _WHERE)]
        cells += [str(each.size >> 10), each.guest, each.key[:16]]
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def _svg(height: float, shapes: Iterable[str]) -> str:
    size = f"0 0 {_WIDTH} {max(height, 1):.0f}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img"'
    return f'{head} font-family="sans-serif" font-size="12">{"".join(shapes)}</svg>'


def _box(x: float, y: float, width: float, step: str, told: str) -> str:
    place = f'x="{x:.2f}" y="{y + 2:.0f}" width="{width:.2f}" height="{_ROW - 4}"'
    colour = _COLOURS.get(step, _OTHER)
    return f'<rect {place} fill="{colour}"><title>{escape(told)}</title></rect>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'
