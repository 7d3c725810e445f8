"""A console's text as a picture: an SVG of a screen, which needs no font but a monospaced one."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

__all__ = ["screen"]

_LINE, _COLUMN, _EDGE = 17, 8, 12
_COLUMNS = 84


def screen(lines: Sequence[str]) -> str:
    """The picture; lines that are too long are cut."""
    shown = [line.expandtabs()[:_COLUMNS] for line in lines]
    width, height = _COLUMNS * _COLUMN + 2 * _EDGE, len(shown) * _LINE + 2 * _EDGE
    texts = "\n".join(
        f'<text x="{_EDGE}" y="{_EDGE + 13 + number * _LINE}">{escape(line)}</text>'
        for number, line in enumerate(shown)
        if line
    )
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n'
        f'<rect width="{width}" height="{height}" rx="6" fill="#1d1f21"/>\n'
        '<g font-family="monospace" font-size="13" fill="#d8d8d8" xml:space="preserve">\n'
        f"{texts}\n</g>\n</svg>\n"
    )
