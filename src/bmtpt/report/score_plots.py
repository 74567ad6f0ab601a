"""Figures of a study: scores over a number that varies or per method, and paired differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from bmtpt.report.chart import Chart, Mark, cells_of, chart
from bmtpt.report.names import MEASURES, contender, display_name, method_and_variant, options_of
from bmtpt.report.statistics import contenders, interval, paired, pairs_to_compare, scores, together
from bmtpt.report.svg import INK, colour, legend, logarithmic, panels, short
from bmtpt.report.table import Table
from bmtpt.report.tables import ALL, difference_table, score_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP"
LONGEST_NAME = 40
SHOTS = "labelled rows (shots)"
MOST_PAIRS = 12
"""Pairs of methods whose differences are drawn; of more the table tells."""


def score_plot(lines: pd.DataFrame) -> Chart:
    """Draw mean ± standard error, one panel per target: curves over the number that varies, else a dot per method."""
    cells, table = scores(lines), score_table(lines)
    axis = varied_number(cells)
    return _dots(cells, contenders(lines), table) if axis is None else _curves(with_x(cells, axis), axis, table)


def varied_number(cells: pd.DataFrame) -> str | None:
    """Return what belongs on the x axis: the first numeric option with several values within one method, or the shots.

    None if nothing of the kind varies.
    """
    found: dict[tuple[str, str], set[float]] = {}
    for name in dict.fromkeys(cells.contender):
        method, variant = method_and_variant(name)
        for option, value in options_of(variant).items():
            if not math.isnan(number := _number(value)):
                found.setdefault((method, option), set()).add(number)
    several_shots = (cells.groupby("target")["shots"].nunique() > 1).all()
    return next((option for (_, option), values in found.items() if len(values) > 1), SHOTS if several_shots else None)


def with_x(cells: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Add `x`, `curve` (the contender without that option) and `panel`; x is NaN where a contender does not set it."""
    if axis == SHOTS:
        return cells.assign(x=cells.shots.astype(float), curve=cells.contender.map(display_name), panel=cells.target)
    names, xs = [], []
    for method, variant in map(method_and_variant, cells.contender):
        options = options_of(variant)
        xs.append(_number(options.pop(axis, "")))
        names.append(display_name(contender(method, ",".join(f"{name}={value}" for name, value in options.items()))))
    return cells.assign(x=xs, curve=names, panel=cells.row)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _curves(cells: pd.DataFrame, axis: str, table: Table) -> Chart:
    targets, names = list(dict.fromkeys(cells.panel)), list(dict.fromkeys(cells.curve))
    columns = {1: 2}.get(len(targets), min(len(targets), 3))
    width = {1: 7.0, 2: 4.6}.get(len(targets), 3.4)
    legend_height = 0.2 * math.ceil(len(names) / columns) / math.ceil(len(targets) / 3)
    figure, axes = panels(len(targets), (width, 2.6 + legend_height))
    marks: list[Mark] = []
    for panel, target in zip(axes, targets, strict=True):
        own = cells[cells.panel == target]
        marks += _marks(panel, own[own.x.notna()].assign(y=own["mean"]), table)
        for index, name in enumerate(names):
            _curve(panel, own[own.curve == name].sort_values("x"), index, short(name, LONGEST_NAME))
        if own.constant.notna().any() and axis == SHOTS:
            panel.axhline(own.constant.max(), color=INK, alpha=0.45, linewidth=2, label="constant answer")
        panel.set_xlabel("number of particles" if axis == "particles" else axis.replace("_", " "))
        panel.set_title(short(target), fontweight="bold")
        xs = sorted(set(own.x.dropna()))
        if xs and xs[0] > 0 and xs[-1] >= 8 * xs[0]:
            panel.set_xscale("log")
        panel.set_xticks(xs, [f"{x:g}" for x in xs])
        panel.minorticks_off()
        if own.metric.isin(MEASURES).all():
            logarithmic(panel, list(own["mean"]))
    axes[0].set_ylabel(_what(cells))
    legend(figure, axes, columns)
    return chart(figure, f"Scores against {axis}", table, marks)


def _marks(panel: Axes, points: pd.DataFrame, table: Table) -> list[Mark]:
    """Return a mark for each of some cells of `statistics.scores`, at their x and y."""
    at = cells_of(table)
    return [Mark(panel, cell.x, cell.y, *at[display_name(cell.contender), cell.row]) for cell in points.itertuples()]


def _curve(panel: Axes, own: pd.DataFrame, index: int, label: str) -> None:
    """Draw the points with an x; a contender without one is a line across."""
    flat, points = own[own.x.isna()], own[own.x.notna()]
    if len(flat):
        name = f"{label}, as set" if len(points) else label
        panel.axhline(flat["mean"].iloc[0], linestyle="--", linewidth=1.3, color=colour(index), label=name)
    if len(points):
        error, marker = points.error.fillna(0), MARKERS[index // 6 % len(MARKERS)]
        shade, (x, y) = colour(index), (points.x, points["mean"])
        panel.errorbar(x, y, error, marker=marker, markersize=4, linewidth=1.3, color=shade, label=label)


def _dots(cells: pd.DataFrame, names: Sequence[str], table: Table) -> Chart:
    """Draw one panel per target with a line per contender, and the constant answer across."""
    rows = [row for row, own in cells.groupby("row", sort=False) if len(own) > 1]
    if not rows:
        return Chart("Scores per target and method", table)
    figure, axes = panels(len(rows), (3.9, 0.9 + 0.24 * len(names)), columns=2)
    methods = list(dict.fromkeys(method_and_variant(name)[0] for name in names))
    marks: list[Mark] = []
    for panel, row in zip(axes, rows, strict=True):
        own = cells[cells.row == row]
        marks += _marks(panel, own.assign(x=own["mean"], y=own.contender.map(names.index)), table)
        for cell in own.itertuples():
            shade = colour(methods.index(method_and_variant(cell.contender)[0]))
            error = cell.error if cell.error == cell.error else 0
            panel.errorbar(cell.mean, names.index(cell.contender), xerr=error, fmt="o", color=shade, markersize=5)
        panel.set_yticks(range(len(names)), [short(display_name(name), LONGEST_NAME) for name in names])
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlabel(_what(cells))
        panel.set_title(short(row), fontweight="bold")
        if own.constant.notna().any():
            panel.axvline(own.constant.max(), color=INK, alpha=0.45, linewidth=2)
    return chart(figure, "Scores per target and method", table, marks)


def _what(cells: pd.DataFrame) -> str:
    metric = str(cells.metric.iloc[0])
    return metric if metric in MEASURES else "score (0 to 100)"


def difference_plot(lines: pd.DataFrame, method: str) -> Chart | None:
    """Draw, per pair of methods, the paired differences and their 95 % intervals by target and over targets.

    None if the method has no results, or shares no run with another one.
    """
    pairs = pairs_to_compare(contenders(lines), method)
    found = {pair: by_unit for pair in pairs if not (by_unit := paired(lines, *pair)).empty}
    if not found:
        return None
    label, table = "Paired differences with 95 % intervals", difference_table(lines, method)
    found = {pair: by_unit for pair, by_unit in found.items() if by_unit.size > 1}
    if not 0 < len(found) <= MOST_PAIRS:
        return Chart(label, table)
    at = cells_of(table)
    height = 0.9 + 0.36 * (max(by_unit.shape[1] for by_unit in found.values()) + 1)
    figure, axes = panels(len(found), (4.2, height), columns=2)
    marks: list[Mark] = []
    for axis, ((left, right), by_unit) in zip(axes, found.items(), strict=True):
        axis.axvline(0, color=INK, linewidth=1, alpha=0.6)
        drawn = {row: by_unit[row].dropna() for row in by_unit}
        if len(drawn) > 1 and together(by_unit) is not None:
            drawn[ALL] = by_unit.dropna().mean(axis=1)
        for y, (row, differences) in enumerate(drawn.items()):
            mean = _interval(axis, y, differences, colour(int(row == ALL)))
            marks.append(Mark(axis, mean, y, *at[f"{display_name(left)} − {display_name(right)}", row]))
        axis.set_yticks(range(len(drawn)), ["over targets" if row == ALL else short(row) for row in drawn])
        axis.set_ylim(len(drawn) - 0.5, -0.5)
        axis.set_xlabel("difference (points)")
        axis.set_title(f"{short(display_name(left))} − {short(display_name(right))}")
    return chart(figure, label, table, marks)


def _interval(axis: Axes, y: int, differences: pd.Series, shade: str) -> float:
    """Draw some differences and their interval; return their mean."""
    mean, low, high, _ = interval(differences)
    axis.plot(differences, [y] * len(differences), "|", color=shade, alpha=0.5, markersize=8)
    axis.plot([mean], [y], "o", color=shade, markersize=6)
    axis.plot([low, high], [y, y], color=shade, linewidth=2)
    return mean
