"""The figure of a comparison: one method against every other one, averaged over targets, with its intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from bmtpt.report.chart import Chart, Mark, cells_of, chart
from bmtpt.report.gains import gain_table, gains
from bmtpt.report.names import MEASURES, direction, display_name
from bmtpt.report.svg import INK, colour, legend, panels, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 56
"""Characters of a method's name per line."""

APART = 0.22
"""Distance of two numbers of shots within a row, in rows."""


def gain_plot(tables: Sequence[pd.DataFrame], method: str) -> str | None:
    """Draw the differences method − other and their 95 % intervals: a panel per metric, a colour per number of shots.

    Args:
        tables: The lines of one metric each.
        method: One contender.

    Returns:
        None if it shares its targets with no other contender.

    Raises:
        ArtifactError: The method has no results.
    """
    found = [gains(lines, method) for lines in tables]
    return to_svg(_figure(tables, found), _label(method)) if any(map(len, found)) else None


def gain_chart(lines: pd.DataFrame, method: str) -> Chart | None:
    """Return the figure of `gain_plot` for one metric, with its numbers."""
    found = gains(lines, method)
    if found.empty:
        return None
    figure, table = _figure([lines], [found]), gain_table(lines, method)
    at = cells_of(table)
    marks = [
        Mark(figure.axes[0], each.stages.mean, each.y, *at[display_name(each.other), _size(each.shots, "shots")])
        for each in _placed(found, _names([found])).itertuples()
    ]
    return chart(figure, f"{_label(method)}: {lines.metric.iloc[0]}", table, marks)


def _label(method: str) -> str:
    return f"{display_name(method)} minus each other method, with 95 % intervals"


def _size(shots: float, unit: str) -> str:
    return "all rows" if pd.isna(shots) else f"{shots:.0f} {unit}"


def _names(found: Sequence[pd.DataFrame]) -> list[str]:
    return list(dict.fromkeys(name for each in found for name in each.other))


def _placed(found: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Add the place `number` of the number of shots among all, and the height `y` of the row."""
    number = found.shots.rank(method="dense", na_option="bottom").astype(int) - 1
    y = found.other.map(list(names).index) + APART * (number - number.max() / 2)
    return found.assign(number=number, y=y)


def _figure(tables: Sequence[pd.DataFrame], found: Sequence[pd.DataFrame]) -> Figure:
    names = _names(found)
    shown = [textwrap.fill(display_name(name), LINE) for name in names]
    height = 1.3 + len(names) * (0.19 + 0.13 * max(1 + text.count("\n") for text in shown))
    figure, axes = panels(len(tables), (5.2 if len(tables) > 1 else 7.2, height), columns=2)
    for panel, lines, own in zip(axes, tables, found, strict=True):
        _panel(panel, own, names)
        panel.set_yticks(range(len(names)), shown if panel is axes[0] else [""] * len(names))
        metrics = lines.metric.unique()
        better = "left" if direction(metrics[0]) < 0 else "right"
        panel.set_title(f"{metrics[0] if len(metrics) == 1 else 'score'}: {better} of 0 is better", fontweight="bold")
        panel.set_xlabel("difference" if metrics[0] in MEASURES else "difference (points)")
    legend(figure, axes)
    return figure


def _panel(panel: Axes, found: pd.DataFrame, names: Sequence[str]) -> None:
    panel.axvline(0, color=INK, linewidth=1, alpha=0.6)
    for number, own in _placed(found, names).groupby("number"):
        shade, marker = colour(int(number)), "os^D"[int(number) % 4]
        means = [each.mean for each in own.stages]
        panel.plot(means, own.y, marker, color=shade, markersize=5, label=_size(own.shots.iloc[0], "labels"))
        for each, place in zip(own.stages, own.y, strict=True):
            panel.plot([each.low, each.high], [place, place], color=shade, linewidth=2)
    panel.set_ylim(len(names) - 0.5, -0.5)
