"""Tables and prose for a terminal of any width: no word is broken, and no number is split.

A table that is too wide has its heads and names folded between words; if that is not enough, it becomes several tables
of the same rows, each with the names first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table as RichTable
from rich.text import Text

from bmtpt.report.table import Best, Table

GAP = 2
HEAD_LINES, NAME_LINES = 4, 2
"""Lines that a head or a name may take before a table is divided instead."""

INDENT = "  "
"""In front of the further lines of a name, which are no rows of their own."""

BREAK = re.compile(r"(?<!=) (?!=)(?!(?<=\d )[^\W\d])")
"""A space where a line may end: "M = 5" and "64 texts" stay together."""


def folded(text: str, width: int, indent: str = "") -> str:
    r"""Return a text in lines of at most a width, as far as its words allow it.

    >>> folded("plain prompt tuning (64 texts)", 20, indent="  ")
    'plain prompt tuning\n  (64 texts)'
    """
    lines: list[str] = []
    for word in BREAK.split(" ".join(text.split())):
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append((indent if lines else "") + word)
    return "\n".join(lines)


def fitted(table: Table, width: int) -> list[RichTable]:
    """Return a table for the terminal: as one, or where that is too wide, as several that divide its columns.

    Each repeats the columns of words; of several, a later one leaves out rows that have no number in it. Only a word
    that is wider than the terminal, or a number next to its name, makes a table too wide; print it with `crop=False`.
    """
    columns = [
        _Column(head, cells, index < table.words)
        for index, (head, *cells) in enumerate(zip(table.header, *table.rows, strict=True))
    ]
    names, numbers = columns[: table.words], columns[table.words :]
    widest = max((column.least() for column in numbers), default=0)
    lines = next((n for n in (NAME_LINES, 2 * NAME_LINES) if _total(names, n) + widest <= width), width)
    first, *others = _groups(numbers, width - _total(names, lines))
    parts = [[*names, *first], *(_with_numbers(names, group) for group in others)]
    return [_drawn(part, width, lines) for part in parts]


class _Column(NamedTuple):
    head: str
    cells: Sequence[str]
    words: bool

    def least(self, lines: int = NAME_LINES) -> int:
        """Return the smallest width for names of so many lines at most, and numbers of one."""
        cells = (_least(cell, lines, INDENT) if self.words else cell_len(cell) for cell in self.cells)
        return max((_least(self.head, HEAD_LINES), *cells))

    @property
    def natural(self) -> int:
        return max(map(cell_len, (self.head, *self.cells)))

    def lines(self, width: int) -> list[Text]:
        """Return head and cells, folded; the best cells in bold."""
        cells = [folded(cell, width, INDENT) if self.words else cell for cell in self.cells]
        styles = ["bold" if isinstance(cell, Best) else "" for cell in self.cells]
        return [Text(folded(self.head, width)), *map(Text, cells, styles)]


def _with_numbers(names: Sequence[_Column], group: Sequence[_Column]) -> list[_Column]:
    rows = [i for i, row in enumerate(zip(*(column.cells for column in group), strict=True)) if set(row) - {"", "–"}]
    return [column._replace(cells=[column.cells[i] for i in rows]) for column in (*names, *group)]


def _least(text: str, lines: int, indent: str = "") -> int:
    width = max((cell_len(word) for word in BREAK.split(text)), default=0)
    while folded(text, width, indent).count("\n") >= lines:
        width += 1
    return max(map(cell_len, folded(text, width, indent).split("\n")))


def _total(columns: Sequence[_Column], lines: int = NAME_LINES) -> int:
    return sum(column.least(lines) + GAP for column in columns)


def _groups(columns: Sequence[_Column], room: int) -> list[list[_Column]]:
    """Divide columns, in their order, into as few groups as fit, of about the same width."""
    found = _packed(columns, room)
    for less in range(room, 0, -1):
        packed = _packed(columns, less)
        if len(packed) > len(found):
            break
        found = packed
    return found


def _packed(columns: Sequence[_Column], room: int) -> list[list[_Column]]:
    groups: list[list[_Column]] = [[]]
    for column in columns:
        if groups[-1] and _total([*groups[-1], column]) - GAP > room:
            groups.append([])
        groups[-1].append(column)
    return groups


def _drawn(columns: Sequence[_Column], width: int, lines: int) -> RichTable:
    """Draw columns as one table; what room is left goes to names first, then to heads that need no second line."""
    widths = [column.least(lines) for column in columns]
    spare = width - sum(widths) - GAP * (len(columns) - 1)
    for i, column in enumerate(columns):
        more = column.natural - widths[i]
        if more <= spare or column.words:
            more = max(0, min(more, spare))
            widths[i], spare = widths[i] + more, spare - more
    rich = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    drawn = [column.lines(width) for column, width in zip(columns, widths, strict=True)]
    for column, (head, *_) in zip(columns, drawn, strict=True):
        rich.add_column(head, justify="left" if column.words else "right", no_wrap=True)
    for row in zip(*(cells for _, *cells in drawn), strict=True):
        rich.add_row(*row)
    used = (max(cell_len(line) for text in texts for line in text.plain.split("\n")) for texts in drawn)
    rich.width = sum(used) + GAP * (len(columns) - 1)  # or rich would take what the console has, and cut words
    return rich
