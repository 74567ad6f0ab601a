"""A chart of the page and the table next to it: a mark of the chart is a cell of the table, which hovering shows.

The page's script (`page.js`) is written by hand. Charts are drawn here and not by a library in the browser (Observable
Plot with d3 has 489 kB, vega 831 kB), because the docs use the same figures as files, and because a page without
scripts, or on paper, then lacks nothing but hovering, sorting and filtering.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bmtpt.report.svg import to_svg
from bmtpt.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OPEN_ROWS = 12
"""Rows of a table that is shown without being asked for."""


class Mark(NamedTuple):
    """A point of a chart, at x and y of a panel, and the cell of the chart's table that holds its value.

    `column` None means the whole row.
    """

    panel: Axes
    x: float
    y: float
    row: int
    column: int | None = None


@dataclass(frozen=True)
class Chart:
    """A figure and its numbers.

    Attributes:
        label: What it shows, for those who do not see it.
        table: Its numbers.
        svg: None where the table says it better: there is a single point.
        marks: "row,column,x,y" of each mark, with the place in the SVG's view box; of a whole row, the column is -1.
    """

    label: str
    table: Table
    svg: str | None = None
    marks: str = ""

    @property
    def open(self) -> bool:
        """Whether the table is short, or all that there is."""
        return self.svg is None or len(self.table.rows) <= OPEN_ROWS


def chart(figure: Figure, label: str, table: Table, marks: Sequence[Mark]) -> Chart:
    """Return a figure of `svg.panels` with its table, or the table alone if there is no more than one mark."""
    if len(marks) < 2:
        return Chart(label, table)
    svg = to_svg(figure, label)  # also decides where the panels are
    return Chart(label, table, svg, " ".join(_places(figure, marks)))


def _places(figure: Figure, marks: Iterable[Mark]) -> Iterable[str]:
    to_figure = figure.transFigure.inverted()
    width, height = figure.get_size_inches() * 72
    for panel, x, y, row, column in marks:
        left, bottom = to_figure.transform(panel.transData.transform((x, y)))
        if left == left and bottom == bottom:  # NaN is a gap
            yield f"{row},{-1 if column is None else column},{left * width:.0f},{(1 - bottom) * height:.0f}"


def cells_of(table: Table) -> dict[tuple[str, str], tuple[int, int]]:
    """Return row and column of each cell by its two names, in either order: the longer side of a table goes down."""
    found = {}
    for row, (name, *texts) in enumerate(table.rows):
        for column in range(1, 1 + len(texts)):
            found[name, table.header[column]] = found[table.header[column], name] = (row, column)
    return found
