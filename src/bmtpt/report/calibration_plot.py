"""The calibration curve of a study: how often answers are right, over how sure they are."""

from __future__ import annotations

import pandas as pd

from bmtpt.report.chart import Chart, Mark, chart
from bmtpt.report.names import display_name, number
from bmtpt.report.statistics import contenders
from bmtpt.report.svg import INK, colour, legend, panels, short
from bmtpt.report.table import Table
from bmtpt.types import CALIBRATION_BINS

MOST_PANELS = 6
"""Targets that have a panel each; more are counted together, by their number of shots."""


def calibration_plot(lines: pd.DataFrame) -> Chart | None:
    """Draw accuracy over confidence in 15 bins, all runs together, a panel per target; None if no line has the curve.

    Args:
        lines: Of one study, of any metrics.
    """
    bins = _bins(lines[(lines.metric == "ece") & lines.reliability.notna()])
    if bins.empty:
        return None
    groups, names = list(dict.fromkeys(bins.row)), [name for name in contenders(lines) if name in set(bins.contender)]
    figure, axes = panels(len(groups), (3.4, 3.2 + 0.06 * len(names)))
    rows: list[tuple[str, ...]] = []
    marks: list[Mark] = []
    for panel, group in zip(axes, groups, strict=True):
        panel.plot([0, 100], [0, 100], color=INK, alpha=0.45, linewidth=1.5, label="as sure as right")
        for index, name in enumerate(names):
            own = bins[(bins.row == group) & (bins.contender == name)]
            panel.plot(own.confidence, own.accuracy, ".-", color=colour(index), label=short(display_name(name), 40))
            for each in own.itertuples():
                marks.append(Mark(panel, each.confidence, each.accuracy, len(rows)))
                limits = f"{100 * each.bin / CALIBRATION_BINS:.0f} to {100 * (each.bin + 1) / CALIBRATION_BINS:.0f}"
                figures = (f"{each.n:,.0f}", number(each.confidence), number(each.accuracy))
                rows.append((group, display_name(name), limits, *figures))
        panel.set(xlabel="confidence (%)", title=short(group))
    axes[0].set_ylabel("accuracy (%)")
    legend(figure, axes, 3)
    header = ("target", "method", "bin of confidence", "answers", "mean confidence (%)", "accuracy (%)")
    return chart(figure, "Accuracy over confidence", Table(header, tuple(rows), words=3), marks)


def _bins(lines: pd.DataFrame) -> pd.DataFrame:
    """Return `n`, `confidence` and `accuracy` (0 to 100) by `row`, `contender` and `bin`, over seeds and stages."""
    if lines.row.nunique() > MOST_PANELS:
        sizes = lines.shots.map(lambda shots: "all rows" if pd.isna(shots) else f"{shots:.0f} shots")
        lines = lines.assign(row="all targets, " + sizes)
    each = lines[["row", "contender", "reliability"]].explode("reliability", ignore_index=True)
    found = pd.DataFrame(each.reliability.tolist(), columns=["bin", "n", "confidence", "accuracy"], dtype=float)
    sums = found.assign(
        row=each.row,
        contender=each.contender,
        confidence=100 * found.n * found.confidence,
        accuracy=100 * found.n * found.accuracy,
    )
    pooled = sums.groupby(["row", "contender", "bin"], sort=False).sum().sort_index(level="bin", sort_remaining=False)
    return pooled.assign(confidence=pooled.confidence / pooled.n, accuracy=pooled.accuracy / pooled.n).reset_index()
