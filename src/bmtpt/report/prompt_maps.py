"""Where the prompts of runs lie, and how alike they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bmtpt.report.chart import Chart, Mark, chart
from bmtpt.report.runs import Floats, Run
from bmtpt.report.svg import colour, panels, short
from bmtpt.report.table import Table


def task_maps(runs: Sequence[Run]) -> list[Chart]:
    """Return one map per width of the prompts: other backbones have other spaces.

    Prompts are averaged over their rows first: flattened prompts are nearly orthogonal whatever their tasks
    (docs/method.md, section 1), so a map of those would show nothing. Fewer than three prompts make no map.
    """
    by_width: dict[int, dict[str, Floats]] = {}
    for run in runs:
        for name, prompt in run.prompts.items():
            full = name if len(runs) == 1 else f"{run.name}: {name}"
            by_width.setdefault(prompt.shape[1], {})[full] = prompt.mean(0)
    maps = []
    for prompts in (each for each in by_width.values() if len(each) >= 3):
        points, shares = principal_components(np.stack(list(prompts.values())))
        figure, (axis,) = panels(1, (6.6, 4.2))
        rows = [(name, f"{x:.3f}", f"{y:.3f}") for name, (x, y) in zip(prompts, points, strict=True)]
        table = Table(("prompt", "first component", "second component"), tuple(rows))
        marks = [Mark(axis, x, y, row) for row, (x, y) in enumerate(points)]
        for name, (x, y) in zip(prompts, points, strict=True):
            particle = name.rpartition(": ")[2].startswith("particle ")
            axis.plot([x], [y], "o" if particle else "s", color=colour(0 if particle else 1), markersize=7)
            axis.annotate(short(name), (x, y), xytext=(6, 4), textcoords="offset points", size=8)
        axis.margins(0.18)
        axis.set_xlabel(f"first component ({shares[0]:.0%} of the variance, embedding units)")
        axis.set_ylabel(f"second component ({shares[1]:.0%})")
        axis.set_aspect("equal", adjustable="datalim")
        maps.append(chart(figure, "Map of the prompts", table, marks))
    return maps


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
