"""The report of a build: well-formed, whole by itself, and true to what was recorded."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

from guestctl.builder.events import Event
from guestctl.builder.report import Built, Recorder, Span, report

COMPONENTS = (
    Built(
        "zlib", "built", "ab" * 32, "g0", 4096,
        {"stage": 1.0, "pre-configure": 1.0, "configure": 2.0, "build": 4.0, "collect": 2.0},
        {"offload": 30, "guest": 10},
    ),
    Built("lua", "cached", "cd" * 32, "g1", 2048, {"build": 5.0}, {"offload": 10}),
    Built("bad<b>", "failed", why="bad<b>: build-commands: <script>alert(1)</script>"),
)  # fmt: skip
SPANS = (Span("zlib", "g0", "stage", 0.0, 1.0), Span("lua", "g1", "build", 2.0, 7.0))
VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Every tag is closed by its own end; what refers to elsewhere is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page() -> str:
    return report("a build", {"image": "0123"}, COMPONENTS, SPANS)


def test_the_page_is_whole_by_itself() -> None:
    parser = Balanced()
    parser.feed(page())
    assert not parser.open
    assert not parser.addresses
    assert not parser.tags & {"script", "link", "img", "iframe", "b"}
    assert "url(" not in page()


def test_what_components_are_called_and_say_is_text() -> None:
    assert "<script>" not in page()
    assert "bad&lt;b&gt;: build-commands: &lt;script&gt;" in page()


def drawings() -> list[ElementTree.Element]:
    texts = re.findall(r"<svg.*?</svg>", page(), re.DOTALL)
    return [ElementTree.fromstring(re.sub(r' xmlns="[^"]*"', "", text)) for text in texts]


def test_bars_are_as_long_as_the_time_they_stand_for() -> None:
    bars, lanes = drawings()
    widths = {
        str(box.findtext("title")): float(str(box.get("width")))
        for box in bars.iter("rect")
        if box.findtext("title")
    }
    assert set(widths) == {
        "zlib: stage 1.0 s", "zlib: configure 3.0 s", "zlib: build 4.0 s", "zlib: collect 2.0 s",
        "lua: build 5.0 s",
    }  # fmt: skip
    second = widths["zlib: stage 1.0 s"]
    assert abs(widths["zlib: configure 3.0 s"] - 3 * second) < 0.1
    assert abs(widths["lua: build 5.0 s"] - 5 * second) < 0.1
    texts = [box.findtext("title") for box in lanes.iter("rect")]
    assert texts == ["zlib: stage, 0 to 1 s", "lua: build, 2 to 7 s"]


def test_calls_are_summed_by_where_they_ran() -> None:
    assert "<tr><td>the host</td><td>40</td><td>80.0 %</td></tr>" in page()
    assert "<tr><td>the guest</td><td>10</td><td>20.0 %</td></tr>" in page()


def test_an_empty_build_has_a_page_too() -> None:
    assert "No call of a compiler" in report("nothing", {}, ())


def test_the_recorder_keeps_what_each_guest_did_and_passes_it_on() -> None:
    now, heard = [10.0], []
    recorder = Recorder(heard.append, lambda: now[0])
    for later, kind, text, guest in (
        (1, "start", "", "g0"), (0, "step", "stage", ""), (2, "step", "build", ""),
        (3, "lost", "died", ""), (1, "start", "", "g1"), (0, "step", "build", ""),
        (4, "done", "", ""),
    ):  # fmt: skip
        now[0] += later
        recorder(Event(kind, "zlib", text, guest))
    assert recorder.spans == (
        Span("zlib", "g0", "stage", 1.0, 3.0),
        Span("zlib", "g0", "build", 3.0, 6.0),
        Span("zlib", "g1", "build", 7.0, 11.0),
    )
    assert (recorder.seconds, len(heard)) == (11.0, 7)
