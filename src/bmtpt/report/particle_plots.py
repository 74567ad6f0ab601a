"""Figures of a posterior's particles: their path, their distances and kernel, and their mean against them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import numpy as np

from bmtpt.posterior.positions import read_positions
from bmtpt.report.chart import Chart, Mark, chart
from bmtpt.report.matrix_plot import matrix_chart
from bmtpt.report.names import figure as number
from bmtpt.report.prompt_maps import name_components, principal_components
from bmtpt.report.runs import Run, mapping, numbers_of
from bmtpt.report.svg import INK, colour, legend, panels, short
from bmtpt.report.table import Table

MOST_CHECKS = 60
"""Checks of a run that its path shows."""


def path_plot(run: Run) -> Chart | None:
    """Draw the particles' way through the plane of its two principal components, check by check.

    None for runs that have logged no positions, or only once.
    """
    read = {event["step"]: read_positions(mapping(event.get("positions"))) for event in run.of_kind("validation")}
    found = {step: at for step, at in read.items() if at is not None}
    found = {step: at for step, at in found.items() if at.shape == list(found.values())[-1].shape}
    steps = list(found)[:: -(-len(found) // MOST_CHECKS) or 1]
    steps += [step for step in list(found)[-1:] if step not in steps]
    if len(steps) < 2:
        return None
    places, shares = principal_components(np.concatenate([found[step] for step in steps]))
    paths = places.reshape(len(steps), -1, 2).transpose(1, 0, 2)  # [M, checks, 2]
    figure, (axis,) = panels(1, (6.6, 4.6))
    rows: list[tuple[str, ...]] = []
    marks: list[Mark] = []
    for m, path in enumerate(paths):
        axis.plot(*path.T, ".-", color=colour(m), linewidth=1.2, markersize=5, label=f"particle {m + 1}")
        axis.plot(*path[0], "o", color=colour(m), markerfacecolor="none", markersize=9)
        axis.plot(*path[-1], "o", color=colour(m), markersize=9)
        for step, (x, y) in zip(steps, path, strict=True):
            marks.append(Mark(axis, x, y, len(rows)))
            rows.append((f"particle {m + 1}", f"step {step}", number(x, "spread"), number(y, "spread")))
    name_components(axis, shares)
    legend(figure, [axis])
    table = Table(("particle", "check", "first component", "second component"), tuple(rows), words=2)
    return chart(figure, "The particles' path", table, marks)


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
