"""Where the prompts of runs lie, and how alike they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bmtpt.report.chart import Chart, Mark, chart
from bmtpt.report.matrix_plot import matrix_chart
from bmtpt.report.names import figure as number
from bmtpt.report.runs import Floats, Run
from bmtpt.report.svg import colour, panels, short
from bmtpt.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


PLANE = "Each prompt averaged over its rows, then projected on two principal components."
LIKENESS = "Cosine of the angle between prompts that are averaged over their rows, in the order of the table."


def task_maps(runs: Sequence[Run]) -> Iterator[tuple[Chart, str]]:
    """Yield, with captions, where prompts lie and how alike they are, per width: other backbones have other spaces.

    Prompts are averaged over their rows first: flattened prompts are nearly orthogonal whatever their tasks
    (docs/method.md, section 1), so a map of those would show nothing. Fewer than three prompts make no map.
    """
    by_width: dict[int, dict[str, Floats]] = {}
    for run in runs:
        for name, prompt in run.prompts.items():
            full = name if len(runs) == 1 else f"{run.name}: {name}"
            by_width.setdefault(prompt.shape[1], {})[full] = prompt.mean(0)
    for prompts in (each for each in by_width.values() if len(each) >= 3):
        names, averages = list(prompts), np.stack(list(prompts.values()))
        yield _plane(names, averages), PLANE
        unit = averages / np.maximum(np.linalg.norm(averages, axis=1, keepdims=True), np.finfo(float).tiny)
        yield matrix_chart("Likeness of the prompts", {"cosine": unit @ unit.T}, names, "prompt"), LIKENESS


def _plane(names: Sequence[str], averages: Floats) -> Chart:
    points, shares = principal_components(averages)
    figure, (axis,) = panels(1, (6.6, 4.2))
    for name, (x, y) in zip(names, points, strict=True):
        particle = name.rpartition(": ")[2].startswith("particle ")
        axis.plot([x], [y], "o" if particle else "s", color=colour(0 if particle else 1), markersize=7)
        axis.annotate(short(name), (x, y), xytext=(6, 4), textcoords="offset points", size=8)
    axis.margins(0.18)
    name_components(axis, shares)
    rows = [(name, number(x, "spread"), number(y, "spread")) for name, (x, y) in zip(names, points, strict=True)]
    table = Table(("prompt", "first component", "second component"), tuple(rows))
    return chart(figure, "Map of the prompts", table, [Mark(axis, x, y, row) for row, (x, y) in enumerate(points)])


def name_components(axis: Axes, shares: Sequence[float]) -> None:
    """Name the axes of a plane of principal components, and give both one scale."""
    axis.set_xlabel(f"first component ({shares[0]:.0%} of the variance, embedding units)")
    axis.set_ylabel(f"second component ({shares[1]:.0%})")
    axis.set_aspect("equal", adjustable="datalim")


def principal_components(x: Floats) -> tuple[Floats, list[float]]:
    """Project N points [N, D] on their first two principal components.

    Returns:
        Coordinates [N, 2] and the two components' shares of the variance. The sign of a component is free; here its
        largest coordinate is positive, so that a map does not flip between machines.
    """
    U, S, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    points = np.zeros((len(x), 2))
    points[:, : min(2, len(S))] = (U * S)[:, :2]
    largest = points[np.abs(points).argmax(0), [0, 1]]
    total = float((S**2).sum()) or 1.0
    shares = [float(s**2) / total for s in S[:2]] + [0.0, 0.0]
    return points * np.where(largest < 0, -1.0, 1.0), shares[:2]
