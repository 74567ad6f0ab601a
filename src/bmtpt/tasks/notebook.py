"""Tables that a notebook shows in place of a long repr."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(caption: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table whose every cell is escaped.

    >>> html_table("a & b", ["x"], [["<1>"]])
    '<table><caption>a &amp; b</caption><tr><th>x</th></tr><tr><td>&lt;1&gt;</td></tr></table>'
    """
    lines = [_line("th", header), *(_line("td", row) for row in rows)]
    return f"<table><caption>{escape(caption)}</caption>{''.join(lines)}</table>"


def _line(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
