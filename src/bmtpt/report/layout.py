"""What a table is before it is printed, and how it is printed: Markdown and the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table as RichTable


class Entry(NamedTuple):
    """One cell of a printed table; ``best`` entries are bold."""

    text: str
    best: bool = False


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Header, rows and notes; the first three columns are words, the others numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()


WORD_COLUMNS = 3


def number(value: float | None) -> str:
    """Return a score with one decimal and a true minus sign, or a dash for None.

    >>> number(-1.84), number(-0.01), number(None)
    ('−1.8', '0.0', '–')
    """
    if value is None:
        return "–"
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def to_markdown(table: ScoreTable) -> str:
    """Return the table as GitHub Markdown, the best of each row in bold, the notes below."""
    rule = ["---" if i < WORD_COLUMNS else "---:" for i in range(len(table.header))]
    rows = [[_markdown(name) for name in table.header], rule]
    rows += [[f"**{_markdown(e.text)}**" if e.best else _markdown(e.text) for e in row] for row in table.rows]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines + [part for note in table.notes for part in ("", _markdown(note))]) + "\n"


def _markdown(text: str) -> str:
    for mark in "\\|*<`":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


def to_rich(table: ScoreTable) -> RichTable:
    """Return the table for the terminal, the best of each row in bold, the notes as its caption."""
    from rich.table import Table
    from rich.text import Text

    # Text objects, because a task named "[red]" is a name and not markup.
    rich = Table(caption=Text("\n".join(table.notes)) if table.notes else None)
    for index, name in enumerate(table.header):
        rich.add_column(Text(name), justify="left" if index < WORD_COLUMNS else "right")
    for row in table.rows:
        rich.add_row(*(Text(entry.text, style="bold" if entry.best else "") for entry in row))
    return rich
