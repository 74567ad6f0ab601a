"""Figures of one training run: loss curves, particle diagnostics, mean against particles, map of prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bmtpt.report.runs import Event, Run, by_task, mapping, number_of, numbers_of
from bmtpt.report.svg import INK, colour, short, to_svg

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

COLUMNS = 3
PANEL = (3.1, 2.5)  # inches
POINTS_IN_ALL = 12_000  # about half a megabyte of SVG
LONGEST_LEGEND = 8

Series = tuple[list[float], list[list[float]]]
"""Steps, and one list of values per particle."""


def panels(count: int, size: tuple[float, float] = PANEL, columns: int = COLUMNS) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` axes in rows of at most `columns`."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(size[0] * columns + 0.3, size[1] * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    return figure, axes


# Losses


def loss_curves(run: Run) -> str | None:
    """Draw, per task, the training loss of each particle (faint), its held-back NLL, and that of the mean."""
    steps, checks = run.of_kind("step"), run.of_kind("validation")
    held_back = [{**event, "held back": event.get("particle_nll") or event.get("loss")} for event in checks]
    tasks = _tasks(steps, "loss") | _tasks(held_back, "held back")
    if not tasks:
        return None
    figure, axes = panels(len(tasks))
    curves = len(tasks) * max(len(_series(steps, "loss", task)[1]) for task in tasks) or 1
    for index, (axis, task) in enumerate(zip(axes, tasks, strict=True)):
        training = thin(_series(steps, "loss", task), max(20, min(300, POINTS_IN_ALL // curves)))
        own = _series(held_back, "held back", task)
        mean = _series(checks, "mean_nll", task)
        _draw_losses(axis, training, own, mean, _what(run))
        axis.set_title(short(task), fontweight="bold")
        axis.set_xlabel("step")
        if index % COLUMNS == 0:
            axis.set_ylabel("loss (nats per label token)")
        logarithmic(axis, [*training[1], *own[1], *mean[1]])
    _legend(figure, axes)
    return to_svg(figure, "Loss curves per task and particle")


def _tasks(events: Sequence[Event], key: str) -> dict[str, None]:
    return {task: None for event in events for task, value in mapping(event.get(key)).items() if numbers_of(value)}


def _series(events: Sequence[Event], key: str, task: str) -> Series:
    found = [(number_of(e.get("step")), numbers_of(mapping(e.get(key)).get(task))) for e in events]
    found = [(step, values) for step, values in found if values]
    width = max((len(values) for _, values in found), default=0)
    padded = [values + [math.nan] * (width - len(values)) for _, values in found]
    return [step for step, _ in found], [list(column) for column in zip(*padded, strict=True)]


def thin(series: Series, most: int) -> Series:
    """Average neighbouring steps so that at most `most` points are left."""
    steps, curves = series
    width = math.ceil(len(steps) / most) or 1
    bins = range(0, len(steps), width)

    def averaged(values: list[float]) -> list[float]:
        return [math.fsum(part) / len(part) for i in bins if (part := values[i : i + width])]

    return averaged(steps), [averaged(curve) for curve in curves]


def _what(run: Run) -> str:
    """What one of several curves is: a target's starts compete as candidates, a posterior has particles."""
    compete = any("candidate_scores" in event for event in run.of_kind("validation"))
    return "candidate" if compete or run.card.get("kind") == "prompt" else "particle"


def _draw_losses(axis: Axes, training: Series, own: Series, mean: Series, what: str) -> None:
    many = max(len(training[1]), len(own[1])) > LONGEST_LEGEND
    for m, curve in enumerate(training[1]):
        axis.plot(training[0], curve, color=colour(m), alpha=0.35, linewidth=0.9)
    for m, curve in enumerate(own[1]):
        name = f"{what}s" if many else f"{what} {m + 1}"
        axis.plot(own[0], curve, ".-", color=colour(m), label=name, linewidth=1.3, markersize=4)
    for curve in mean[1]:
        axis.plot(mean[0], curve, "D--", color=INK, label="mean of the particles", linewidth=1.3, markersize=3)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, each name once."""
    entries = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(6, len(entries)))


def logarithmic(axis: Axes, curves: Sequence[Sequence[float]], ratio: float = 30.0) -> None:
    """Make the y axis logarithmic if all values are positive and span more than `ratio`."""
    values = [value for curve in curves for value in curve if math.isfinite(value)]
    if not values or min(values) <= 0 or max(values) <= ratio * min(values):
        return
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


# Diagnostics

# Title, unit, and the series with their names in the events.
_CURVES: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "spread and mean",
        "rms (embedding units)",
        {"spread of the particles": "spread", "size of their mean": "mean_rms"},
    ),
    (
        "repulsion to drive",
        "ratio of norms",
        {"repulsion to drive": "repulsion_to_drive"},
    ),
    ("bandwidth h", "(embedding units)²", {"bandwidth": "bandwidth"}),
    ("particles that act apart", "kernel rank, 1 to M", {"kernel rank": "kernel_rank"}),
    ("Stein discrepancy", "squared, U-statistic", {"discrepancy": "stein_discrepancy"}),
)


def diagnostics_curves(run: Run) -> str | None:
    """Draw the logged diagnostics of the particles over steps."""
    events = run.of_kind("diagnostics")
    drawn = [
        (title, unit, found)
        for title, unit, curves in _CURVES
        if (found := {name: series for name, key in curves.items() if (series := _scalars(events, key))})
    ]
    if not drawn:
        return None
    figure, axes = panels(len(drawn))
    for axis, (title, unit, found) in zip(axes, drawn, strict=True):
        for index, (name, (steps, values)) in enumerate(found.items()):
            axis.plot(steps, values, ".-", color=colour(index), label=name, linewidth=1.3, markersize=4)
        axis.set(title=title, xlabel="step", ylabel=unit)
        logarithmic(axis, [values for _, values in found.values()])
        if len(found) > 1:
            axis.legend()
        if len(found) > 1 and axis.get_yscale() == "linear":
            axis.set_ylim(bottom=0)  # two sizes are compared
    return to_svg(figure, "Diagnostics of the particles over steps")


def _scalars(events: Sequence[Event], key: str) -> tuple[list[float], list[float]] | None:
    found = [(number_of(event.get("step")), numbers_of(mapping(event.get("diagnostics")).get(key))) for event in events]
    # One number per row (kernel scope "row") is shown as its mean.
    points = [(step, math.fsum(values) / len(values)) for step, values in found if values]
    if not any(math.isfinite(value) for _, value in points):
        return None
    return [step for step, _ in points], [value for _, value in points]


def heat_maps(run: Run) -> str | None:
    """Draw the last logged distances between particles and their kernel matrix."""
    last = mapping((run.of_kind("diagnostics") or [run.card])[-1].get("diagnostics"))
    kinds = (("distances", "distance ‖θᵢ − θⱼ‖ (embedding units)"), ("kernel", "kernel k(θᵢ, θⱼ)"))
    found = [(title, M) for key, title in kinds if (M := _square(last.get(key))) is not None and len(M) > 1]
    if not found:
        return None
    figure, axes = panels(len(found), (3.9, 3.2))
    for axis, (title, matrix) in zip(axes, found, strict=True):
        _heat_map(axis, matrix)
        axis.set_title(title)
    return to_svg(figure, "Distances between the particles and their kernel matrix")


def _square(value: object) -> NDArray[np.float64] | None:
    import numpy as np

    rows = [numbers_of(row) for row in value] if isinstance(value, list) else []
    return np.array(rows) if rows and all(len(row) == len(rows) for row in rows) else None


def _heat_map(axis: Axes, matrix: NDArray[np.float64]) -> None:
    M = len(matrix)
    mesh = axis.pcolormesh(matrix, cmap="viridis", edgecolors="none")
    axis.figure.colorbar(mesh, ax=axis, shrink=0.85).outline.set_visible(False)
    axis.grid(False)
    axis.set(aspect="equal", xlabel="particle", ylabel="particle")
    ticks = range(0, M, math.ceil(M / 10))
    axis.set_xticks([tick + 0.5 for tick in ticks], [str(tick + 1) for tick in ticks])
    axis.set_yticks([tick + 0.5 for tick in ticks], [str(tick + 1) for tick in ticks])
    axis.invert_yaxis()
    if M <= 8:
        middle = matrix.min() + 0.6 * (matrix.max() - matrix.min())
        for (i, j), value in enumerate_matrix(matrix):
            # Texts take the colour that viridis leaves legible: it is dark below the middle.
            dark = value <= middle
            axis.text(j + 0.5, i + 0.5, f"{value:.3g}", ha="center", va="center", size=8, color="w" if dark else "k")


def enumerate_matrix(matrix: NDArray[np.float64]) -> list[tuple[tuple[int, int], float]]:
    """Return ((row, column), value) of every entry."""
    return [((i, j), float(value)) for i, row in enumerate(matrix) for j, value in enumerate(row)]


# The mean against the particles


def mean_gap(run: Run) -> dict[str, tuple[float, list[float]]]:
    """Return, per task, the last held-back NLL of the particles' mean and of each particle, in nats."""
    for event in reversed(run.of_kind("validation")):
        mean, own = by_task(event.get("mean_nll")), by_task(event.get("particle_nll"))
        if shared := {task: (mean[task][0], own[task]) for task in own if task in mean}:
            return shared
    return {}


def gap_plot(gaps: Mapping[str, tuple[float, list[float]]]) -> str:
    """Draw the mean's NLL (diamond) against the particles' (dots), one line per task."""
    figure, (axis,) = panels(1, (6.2, 0.9 + 0.38 * len(gaps)))
    for y, (mean, own) in enumerate(gaps.values()):
        axis.plot([*own, mean], [y] * (len(own) + 1), color=INK, alpha=0.3, linewidth=1)
        axis.plot(own, [y] * len(own), "o", color=colour(0), label="particles", alpha=0.75, markersize=6)
        axis.plot([mean], [y], "D", color=colour(1), label="their mean", markersize=7)
    axis.set_yticks(range(len(gaps)), [short(task) for task in gaps])
    axis.set_ylim(len(gaps) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel("held-back loss (nats per label token)")
    _legend(figure, [axis])
    return to_svg(figure, "Held-back loss of the particles and of their mean")


# Map of prompts


def task_map(prompts: Mapping[str, NDArray[np.float64]]) -> tuple[str, str] | None:
    """Draw prompts [P, D] of one width as points, with a sentence on what the axes keep; None for fewer than three.

    Prompts are averaged over their rows first: flattened prompts are nearly orthogonal whatever their tasks
    (docs/method.md, section 1), so a map of those would show nothing.
    """
    import numpy as np

    if len(prompts) < 3:
        return None
    points, shares = principal_components(np.stack([prompt.mean(0) for prompt in prompts.values()]))
    figure, (axis,) = panels(1, (6.6, 4.2))
    for (name, _), (x, y) in zip(prompts.items(), points, strict=True):
        particle = name.rpartition(": ")[2].startswith("particle ")
        axis.plot([x], [y], "o" if particle else "s", color=colour(0 if particle else 1), markersize=7)
        axis.annotate(short(name), (x, y), xytext=(6, 4), textcoords="offset points", size=8)
    axis.margins(0.18)
    axis.set_xlabel(f"first component ({shares[0]:.0%} of the variance, embedding units)")
    axis.set_ylabel(f"second component ({shares[1]:.0%})")
    axis.set_aspect("equal", adjustable="datalim")
    caption = "Each prompt averaged over its rows, then projected on two principal components."
    return to_svg(figure, "Map of the prompts"), caption


def principal_components(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[float]]:
    """Project N points [N, D] on their first two principal components.

    Returns:
        Coordinates [N, 2] and the two components' shares of the variance. The sign of a component is free; here its
        largest coordinate is positive, so that a map does not flip between machines.
    """
    import numpy as np

    centred = x - x.mean(0)
    U, S, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(x), 2))
    points[:, : min(2, len(S))] = (U * S)[:, :2]
    largest = points[np.abs(points).argmax(0), [0, 1]]
    total = float((S**2).sum()) or 1.0
    shares = [float(s**2) / total for s in S[:2]] + [0.0, 0.0]
    return points * np.where(largest < 0, -1.0, 1.0), shares[:2]
