"""The figure of a comparison: one method against every other one, averaged over targets, with its intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from bmtpt.report.gains import gains
from bmtpt.report.names import MEASURES, direction, display_name
from bmtpt.report.svg import INK, colour, legend, panels, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    names = list(dict.fromkeys(name for each in found for name in each.other))
    if not names:
        return None
    shown = [textwrap.fill(display_name(name), LINE) for name in names]
    height = 1.3 + len(names) * (0.19 + 0.13 * max(1 + text.count("\n") for text in shown))
    figure, axes = panels(len(tables), (5.2, height), columns=2)
    for panel, lines, own in zip(axes, tables, found, strict=True):
        _panel(panel, own, names)
        panel.set_yticks(range(len(names)), shown if panel is axes[0] else [""] * len(names))
        metrics = lines.metric.unique()
        better = "left" if direction(metrics[0]) < 0 else "right"
        panel.set_title(f"{metrics[0] if len(metrics) == 1 else 'score'}: {better} of 0 is better", fontweight="bold")
        panel.set_xlabel("difference" if metrics[0] in MEASURES else "difference (points)")
    legend(figure, axes)
    return to_svg(figure, f"{display_name(method)} minus each other method, with 95 % intervals")


def _panel(panel: Axes, found: pd.DataFrame, names: Sequence[str]) -> None:
    panel.axvline(0, color=INK, linewidth=1, alpha=0.6)
    sizes = sorted(found.shots.unique())
    for number, shots in enumerate(sizes):
        own = found[found.shots.eq(shots) | (found.shots.isna() & pd.isna(shots))]
        y = [names.index(name) + APART * (number - (len(sizes) - 1) / 2) for name in own.other]
        shade, label = colour(number), "all rows" if pd.isna(shots) else f"{shots:.0f} labels"
        panel.plot([each.mean for each in own.stages], y, "os^D"[number % 4], color=shade, markersize=5, label=label)
        for each, place in zip(own.stages, y, strict=True):
            panel.plot([each.low, each.high], [place, place], color=shade, linewidth=2)
    panel.set_ylim(len(names) - 0.5, -0.5)
