"""A table of texts, for Markdown, the terminal and the HTML report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


COUNTS = ("shots", "units", "runs", "trained_parameters")
"""Columns of records that hold whole numbers."""

Records = tuple[Mapping[str, Any], ...]


class Best(str):
    """A table's text that is marked as the best of its group."""

    best = True


@dataclass(frozen=True, slots=True)
class Table:
    """Texts by row, and what they say.

    Attributes:
        words: So many first columns are words, the others numbers.
        records: The same for programs: plain keys, unrounded numbers.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: int = 1
    records: Records = ()


def records_of(table: str, frame: pd.DataFrame) -> Records:
    """Return a frame's rows as records that name their table; what is not known is None."""
    frame = frame.astype({name: "Int64" for name in COUNTS if name in frame})  # a missing one has made floats of them
    plain = frame.astype(object).where(frame.notna(), None)
    return tuple({"table": table, **row} for row in plain.to_dict("records"))


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
