"""docs/tutorial.md as what it tells people to make and to type."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TUTORIAL", "Command", "commands_of", "files_of", "section"]

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"
_BLOCK = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """A line that is typed, and what the page says that it prints: `…` is anything."""

    line: str
    shown: str

    def matches(self, printed: str) -> bool:
        """Whether that is what it printed; the page may show nothing of it."""
        pattern = "".join(
            r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + "\n"
            for line in self.shown.splitlines()
        )
        return not self.shown or re.fullmatch(pattern, printed) is not None


def section(title: str) -> str:
    """What stands below a heading of the second level."""
    return TUTORIAL.read_text().split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def files_of(text: str) -> dict[str, str]:
    """The files of which it shows the content: a name in back quotes, then an indented block."""
    found = {}
    for name, block in re.findall(r"^`([^`]+)`:\n\n((?:(?: {4}.*)?\n)+)", text, re.MULTILINE):
        found[name] = textwrap.dedent(block).strip("\n") + "\n"
    return found


def commands_of(text: str) -> Iterator[Command]:
    """What is typed, in order."""
    for block in _BLOCK.findall(text):
        shown = textwrap.dedent(block).strip("\n")
        if shown.startswith("$ "):
            for one in re.split(r"^\$ ", shown, flags=re.MULTILINE)[1:]:
                line, _, output = one.rstrip("\n").partition("\n")
                yield Command(line, output)
