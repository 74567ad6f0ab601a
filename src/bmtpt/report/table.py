"""A table of texts, for Markdown, the terminal and the HTML report."""

from __future__ import annotations

from dataclasses import dataclass


class Best(str):
    """A table's text that is marked as the best of its group."""

    best = True


@dataclass(frozen=True, slots=True)
class Table:
    """Texts by row; the first `words` columns are words, the others numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: int = 1


def to_markdown(table: Table) -> str:
    """Return the table as GitHub Markdown, the best in bold, the notes below."""
    rule = ["---" if column < table.words else "---:" for column in range(len(table.header))]
    body = [
        [f"**{_escaped(text)}**" if isinstance(text, Best) else _escaped(text) for text in row] for row in table.rows
    ]
    lines = ["| " + " | ".join(row) + " |" for row in [list(map(_escaped, table.header)), rule, *body]]
    return "\n".join(lines + [part for note in table.notes for part in ("", _escaped(note))]) + "\n"


def _escaped(text: str) -> str:
    for mark in "\\|*<`":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
