"""Figures of studies that vary settings: lines over a number that is varied, bars where none is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bmtpt.report.score_plots import MARKERS, row_label, score_plot
from bmtpt.report.summary import (
    MEASURES,
    Cell,
    Row,
    display_name,
    has_variants,
    method_and_variant,
    methods_of,
    options_of,
)
from bmtpt.report.svg import INK, colour, short, to_svg
from bmtpt.report.training_plots import logarithmic, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_NAME = 40


def plot_of(cells: Sequence[Cell]) -> str:
    """Draw the scores in the way that suits them: by variant if there are variants, else by method."""
    return variant_plot(cells) if has_variants(cells) else score_plot(cells)


def variant_plot(cells: Sequence[Cell]) -> str:
    """Draw a score per target over the number that varies, or one bar per method and variant if none does."""
    axis = varied_number(cells)
    rows = list(dict.fromkeys(cell.row for cell in cells))
    if axis is None:
        return _bars(cells, rows)
    curves = {row: curves_over([cell for cell in cells if cell.row == row], axis) for row in rows}
    names = list(dict.fromkeys(name for each in curves.values() for name in each))
    columns = {1: 2}.get(len(rows), min(len(rows), 3))
    width = {1: 7.0, 2: 4.6}.get(len(rows), 3.4)
    legend = 0.2 * math.ceil(len(names) / columns)
    figure, axes = panels(len(rows), (width, 2.6 + legend / math.ceil(len(rows) / 3)))
    for panel, row in zip(axes, rows, strict=True):
        _draw(panel, curves[row], names, axis)
        panel.set_title(row_label(row), fontweight="bold")
    axes[0].set_ylabel(_what(cells))
    entries = {name: mark for panel in axes for mark, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
    return to_svg(figure, f"Scores against {axis}")


def varied_number(cells: Sequence[Cell]) -> str | None:
    """Return the first option whose values are numbers and which has two or more of them within one method."""
    found: dict[tuple[str, str], set[float]] = {}
    for cell in cells:
        method, variant = method_and_variant(cell.method)
        for option, value in options_of(variant).items():
            if (number := _as_number(value)) is not None:
                found.setdefault((method, option), set()).add(number)
    return next((option for (_, option), values in found.items() if len(values) > 1), None)


Points = list[tuple[float, Cell]]


def curves_over(cells: Sequence[Cell], axis: str) -> dict[str, Points]:
    """Return points by the name of the method and what else varies.

    A point without the number has x = NaN; it is drawn across all others.
    """
    found: dict[str, Points] = {}
    for cell in cells:
        method, variant = method_and_variant(cell.method)
        options = options_of(variant)
        x = _as_number(options.pop(axis, ""))
        rest = ",".join(f"{option}={value}" for option, value in options.items())
        name = display_name(f"{method}[{rest}]" if rest else method)
        found.setdefault(name, []).append((float("nan") if x is None else x, cell))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in found.items()}


def _draw(panel: Axes, curves: Mapping[str, Points], names: Sequence[str], axis: str) -> None:
    xs = sorted({x for points in curves.values() for x, _ in points if x == x})
    for index, name in enumerate(names):
        shade, label = colour(index), short(name, LONGEST_NAME)
        flat = [cell for x, cell in curves.get(name, []) if x != x]
        points = [(x, cell) for x, cell in curves.get(name, []) if x == x]
        if flat:
            beside = f"{label}, as set" if points else label
            panel.axhline(flat[0].mean, linestyle="--", linewidth=1.3, color=shade, label=beside)
        if not points:
            continue
        panel.errorbar(
            [x for x, _ in points],
            [cell.mean for _, cell in points],
            yerr=[cell.standard_error or 0.0 for _, cell in points],
            marker=MARKERS[index // 6 % len(MARKERS)],
            markersize=4,
            linewidth=1.3,
            capsize=2,
            color=shade,
            label=label,
        )
    panel.set_xlabel(axis)
    if xs and xs[0] > 0 and xs[-1] >= 10 * xs[0]:
        panel.set_xscale("log")
        panel.set_xticks(xs, [f"{x:g}" for x in xs])
        panel.minorticks_off()
    if all(cell.metric in MEASURES for points in curves.values() for _, cell in points):
        logarithmic(panel, [[cell.mean for _, cell in points] for points in curves.values()])


def _bars(cells: Sequence[Cell], rows: Sequence[Row]) -> str:
    names = methods_of(cells)
    figure, axes = panels(len(rows), (3.9, 0.9 + 0.24 * len(names)), columns=2)
    for panel, row in zip(axes, rows, strict=True):
        own = {cell.method: cell for cell in cells if cell.row == row}
        there = [name for name in names if name in own]
        panel.barh(
            [names.index(name) for name in there],
            [own[name].mean for name in there],
            xerr=[own[name].standard_error or 0.0 for name in there],
            color=[colour(_group(name, names)) for name in there],
            error_kw={"ecolor": INK, "capsize": 2},
        )
        panel.set_yticks(range(len(names)), [short(display_name(name), LONGEST_NAME) for name in names])
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlabel(_what(cells))
        panel.set_title(row_label(row), fontweight="bold")
        constants = [cell.constant_answer for cell in own.values() if cell.constant_answer is not None]
        if constants:
            panel.axvline(constants[0], color=INK, alpha=0.45, linewidth=2)
    return to_svg(figure, "Scores per target, method and variant")


def _group(name: str, names: Sequence[str]) -> int:
    methods = list(dict.fromkeys(method_and_variant(each)[0] for each in names))
    return methods.index(method_and_variant(name)[0])


def _what(cells: Sequence[Cell]) -> str:
    return cells[0].metric if cells[0].metric in MEASURES else "score (0 to 100)"


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
