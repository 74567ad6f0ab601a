"""Square matrices as heat maps: distances, kernels, and how alike prompts are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bmtpt.report.chart import Chart, Mark, chart
from bmtpt.report.names import figure as number
from bmtpt.report.runs import Floats
from bmtpt.report.svg import panels
from bmtpt.report.table import Table

MOST = 24
"""Rows and columns that are shown."""

WITH_NUMBERS = 8
"""Rows and columns whose numbers fit into their squares."""


def matrix_chart(label: str, matrices: Mapping[str, Floats], names: Sequence[str], axis: str) -> Chart:
    """Draw matrices [N, N] of the same rows and columns, a panel each; of more than 24 the first ones.

    Args:
        label: What they show.
        matrices: By title.
        names: Of the rows.
        axis: What a row is; numbers count them in the figure.
    """
    names = names[:MOST]
    matrices = {title: matrix[:MOST, :MOST] for title, matrix in matrices.items()}
    figure, axes = panels(len(matrices), (3.9, 3.2))
    rows: list[tuple[str, ...]] = []
    marks: list[Mark] = []
    for panel, (title, matrix) in zip(axes, matrices.items(), strict=True):
        for i, values in enumerate(matrix):
            marks += [Mark(panel, j, i, len(rows), 2 + j) for j in range(len(values))]
            rows.append((title, names[i], *(number(value, "spread") for value in values)))
        image = panel.imshow(matrix, cmap="viridis", interpolation="nearest")
        panel.figure.colorbar(image, ax=panel, shrink=0.85).outline.set_visible(False)
        panel.grid(False)
        panel.set(xlabel=axis, ylabel=axis, title=title)
        for set_ticks in (panel.set_xticks, panel.set_yticks):
            ticks = range(0, len(matrix), math.ceil(len(matrix) / 10))
            set_ticks(ticks, [str(tick + 1) for tick in ticks])
        # Viridis is dark below the middle, where black text would not be legible.
        middle = matrix.min() + 0.6 * (matrix.max() - matrix.min())
        for (i, j), value in np.ndenumerate(matrix if len(matrix) <= WITH_NUMBERS else matrix[:0]):
            shade = "w" if value <= middle else "k"
            panel.text(j, i, f"{value:.3g}", ha="center", va="center", size=8, color=shade)
    return chart(figure, label, Table(("what", axis, *names), tuple(rows), words=2), marks)
