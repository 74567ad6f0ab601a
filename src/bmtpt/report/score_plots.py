"""Figures of a study: scores with standard errors, and paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bmtpt.report.summary import Cell, Interval, PairedDifference, Row, display_name, methods_of
from bmtpt.report.svg import INK, colour, short, to_svg
from bmtpt.report.training_plots import panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP"


def row_label(row: Row) -> str:
    """Return a plot's name of a target and its shots."""
    return short(row[0]) if row[1] is None else f"{short(row[0])}, {row[1]} shots"


def score_plot(cells: Sequence[Cell]) -> str:
    """Draw mean ± standard error per method and target, with the constant answer as a grey line."""
    rows = list(dict.fromkeys(cell.row for cell in cells))
    methods = methods_of(cells)
    step = 0.8 / len(methods)
    figure, (axis,) = panels(1, (8.2, 1.2 + len(rows) * max(0.5, 0.17 * len(methods))))
    for index, method in enumerate(methods):
        own = [cell for cell in cells if cell.method == method]
        axis.errorbar(
            [cell.mean for cell in own],
            [rows.index(cell.row) + (index + 0.5) * step - 0.4 for cell in own],
            xerr=[cell.standard_error or 0.0 for cell in own],
            fmt=MARKERS[index % len(MARKERS)],
            color=colour(index),
            label=short(display_name(method)),
            capsize=2,
            markersize=5,
        )
    _constant_answers(axis, cells, rows)
    axis.set_yticks(range(len(rows)), [row_label(row) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("score (0 to 100), mean ± standard error over seeds")
    figure.legend(loc="outside right upper")
    return to_svg(figure, "Scores per target and method")


def _constant_answers(axis: Axes, cells: Sequence[Cell], rows: Sequence[Row]) -> None:
    known = {cell.row: cell.constant_answer for cell in cells if cell.constant_answer is not None}
    ys = [rows.index(row) for row in known]
    if known:
        axis.vlines(
            list(known.values()),
            [y - 0.42 for y in ys],
            [y + 0.42 for y in ys],
            color=INK,
            alpha=0.45,
            linewidth=2,
            label="constant answer",
        )


def difference_plot(differences: Sequence[PairedDifference]) -> str | None:
    """Draw, per baseline, the paired differences and their 95 % intervals by target and over targets."""
    shown = [difference for difference in differences if difference.rows]
    if not shown:
        return None
    height = 0.9 + 0.36 * (max(len(difference.rows) for difference in shown) + 1)
    figure, axes = panels(len(shown), (4.2, height), columns=2)
    for axis, difference in zip(axes, shown, strict=True):
        lines = [(row_label(row), interval, 0) for row, interval in difference.rows.items()]
        if difference.overall is not None and len(lines) > 1:
            lines.append(("over targets", difference.overall, 1))
        axis.axvline(0, color=INK, linewidth=1, alpha=0.6)
        for y, (_, interval, shade) in enumerate(lines):
            _draw_interval(axis, y, interval, colour(shade))
        axis.set_yticks(range(len(lines)), [name for name, _, _ in lines])
        axis.set_ylim(len(lines) - 0.5, -0.5)
        axis.set_xlabel("difference (points)")
        axis.set_title(f"{short(display_name(difference.method))} minus {short(display_name(difference.baseline))}")
    return to_svg(figure, "Paired differences with 95 % intervals")


def _draw_interval(axis: Axes, y: int, interval: Interval, shade: str) -> None:
    axis.plot(interval.differences, [y] * len(interval.differences), "|", color=shade, alpha=0.5, markersize=8)
    axis.plot([interval.mean], [y], "o", color=shade, markersize=6)
    if interval.low is not None and interval.high is not None:
        axis.plot([interval.low, interval.high], [y, y], color=shade, linewidth=2)
