"""Figures of a posterior's particles: their distances and kernel, and their mean against them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import numpy as np

from bmtpt.report.chart import Chart, Mark, chart
from bmtpt.report.matrix_plot import matrix_chart
from bmtpt.report.names import figure as number
from bmtpt.report.runs import Run, mapping, numbers_of
from bmtpt.report.svg import INK, colour, legend, panels, short
from bmtpt.report.table import Table


def heat_maps(run: Run) -> Chart | None:
    """Draw the last logged distances between particles and their kernel matrix."""
    last = mapping((run.of_kind("diagnostics") or [run.card])[-1].get("diagnostics"))
    kinds = (("distances", "distance ‖θᵢ − θⱼ‖ (embedding units)"), ("kernel", "kernel k(θᵢ, θⱼ)"))
    found = {}
    for key, title in kinds:
        rows = [numbers_of(row) for row in last[key]] if isinstance(last.get(key), list) else []
        if len(rows) > 1 and all(len(row) == len(rows) for row in rows):
            found[title] = np.array(rows)
    if not found:
        return None
    names = [f"particle {m + 1}" for m in range(max(map(len, found.values())))]
    return matrix_chart("Distances between the particles and their kernel matrix", found, names, "particle")


def gap_plot(gaps: Mapping[str, tuple[float, list[float]]]) -> Chart | None:
    """Draw the mean's NLL (diamond) against the particles' (dots), one line per task; None for a single particle."""
    M = max((len(own) for _, own in gaps.values()), default=0)
    if M < 2:
        return None
    header = ("task", "mean prompt", "particles, average", "gap", *(f"particle {m + 1}" for m in range(M)))
    rows: list[tuple[str, ...]] = []
    marks: list[Mark] = []
    figure, (axis,) = panels(1, (6.2, 0.9 + 0.38 * len(gaps)))
    for y, (task, (mean, own)) in enumerate(gaps.items()):
        padded = own + [float("nan")] * (M - len(own))
        rows.append((task, *(number(value, "mean_nll") for value in (mean, fmean(own), mean - fmean(own), *padded))))
        marks += [Mark(axis, mean, y, y, 1), *(Mark(axis, value, y, y, 4 + m) for m, value in enumerate(own))]
        axis.plot([*own, mean], [y] * (len(own) + 1), color=INK, alpha=0.3, linewidth=1)
        axis.plot(own, [y] * len(own), "o", color=colour(0), label="particles", alpha=0.75, markersize=6)
        axis.plot([mean], [y], "D", color=colour(1), label="their mean", markersize=7)
    axis.set_yticks(range(len(gaps)), [short(task) for task in gaps])
    axis.set_ylim(len(gaps) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel("held-out loss (nats)")
    legend(figure, [axis])
    notes = ("Held-out loss in nats; gap: mean prompt minus average of the particles.",)
    return chart(figure, "Held-out loss of the particles and of their mean", Table(header, tuple(rows), notes), marks)
