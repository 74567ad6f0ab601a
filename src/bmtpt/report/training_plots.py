"""Figures of training runs: loss curves, particle diagnostics, mean against particles, map of prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bmtpt.report.runs import Event, Floats, Run, mapping, number_of, numbers_of
from bmtpt.report.svg import COLUMNS, INK, colour, legend, logarithmic, panels, short, to_svg

POINTS_IN_ALL = 12_000  # about half a megabyte of SVG
LONGEST_LEGEND = 8


class Series(NamedTuple):
    """Steps [n] and the values at these steps, one column per particle [n, M]."""

    steps: Floats
    values: Floats


def series(events: Sequence[Event], *keys: str) -> Series:
    """Return the numbers that events have at `event[key][key]…`, padded with NaN to one width."""
    found: list[tuple[float, list[float]]] = []
    for event in events:
        value: object = event
        for key in keys:
            value = mapping(value).get(key)
        if numbers := numbers_of(value):
            found.append((number_of(event.get("step")), numbers))
    width = max((len(numbers) for _, numbers in found), default=0)
    padded = [numbers + [math.nan] * (width - len(numbers)) for _, numbers in found]
    return Series(np.array([step for step, _ in found]), np.array(padded).reshape(len(found), width))


def thin(curve: Series, most: int) -> Series:
    """Average neighbouring steps so that at most `most` points are left."""
    steps, values = curve
    width = math.ceil(len(steps) / most) or 1
    parts = [slice(i, i + width) for i in range(0, len(steps), width)]
    means = [values[part].mean(0) for part in parts]
    return Series(
        np.array([steps[part].mean() for part in parts]), np.array(means).reshape(len(parts), values.shape[1])
    )


# Losses


def loss_curves(run: Run) -> str | None:
    """Draw, per task, the training loss of each particle (faint), its held-out NLL, and that of the mean."""
    steps, checks = run.of_kind("step"), run.of_kind("validation")
    held_out = [{**event, "held out": event.get("particle_nll") or event.get("loss")} for event in checks]
    tasks = [
        task
        for task in dict.fromkeys(
            [task for event in steps for task in mapping(event.get("loss"))]
            + [task for event in held_out for task in mapping(event["held out"])]
        )
        if len(series(steps, "loss", task).steps) or len(series(held_out, "held out", task).steps)
    ]
    if not tasks:
        return None
    figure, axes = panels(len(tasks))
    training = {task: series(steps, "loss", task) for task in tasks}
    curves = len(tasks) * max(each.values.shape[1] for each in training.values()) or 1
    # A target's starts compete as candidates, a posterior has particles.
    compete = run.card.get("kind") == "prompt" or any("candidate_scores" in event for event in checks)
    what = "candidate" if compete else "particle"
    for index, (axis, task) in enumerate(zip(axes, tasks, strict=True)):
        faint = thin(training[task], max(20, min(300, POINTS_IN_ALL // curves)))
        own, mean = series(held_out, "held out", task), series(checks, "mean_nll", task)
        many = max(faint.values.shape[1], own.values.shape[1]) > LONGEST_LEGEND
        for m, curve in enumerate(faint.values.T):
            axis.plot(faint.steps, curve, color=colour(m), alpha=0.35, linewidth=0.9)
        for m, curve in enumerate(own.values.T):
            name = f"{what}s" if many else f"{what} {m + 1}"
            axis.plot(own.steps, curve, ".-", color=colour(m), label=name, linewidth=1.3, markersize=4)
        for curve in mean.values.T:
            axis.plot(mean.steps, curve, "D--", color=INK, label="mean of the particles", linewidth=1.3, markersize=3)
        axis.set_title(short(task), fontweight="bold")
        axis.set_xlabel("step")
        if index % COLUMNS == 0:
            axis.set_ylabel("loss (nats)")
        logarithmic(axis, [*faint.values.flat, *own.values.flat, *mean.values.flat])
    legend(figure, axes)
    return to_svg(figure, "Loss curves per task and particle")


# Diagnostics

# Title, unit, and the curves with their names in the events.
_CURVES: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "spread and mean",
        "rms (embedding units)",
        {"spread of the particles": "spread", "size of their mean": "mean_rms"},
    ),
    ("repulsion to drive", "ratio of norms", {"repulsion to drive": "repulsion_to_drive"}),
    ("bandwidth h", "(embedding units)²", {"bandwidth": "bandwidth"}),
    ("effective particles", "kernel rank, 1 to M", {"kernel rank": "kernel_rank"}),
    ("Stein discrepancy", "squared, U-statistic", {"discrepancy": "stein_discrepancy"}),
)


def diagnostics_curves(run: Run) -> str | None:
    """Draw the logged diagnostics of the particles over steps; one number per row (kernel scope "row") as its mean."""
    events = run.of_kind("diagnostics")
    drawn = []
    for title, unit, names in _CURVES:
        found = {name: series(events, "diagnostics", key) for name, key in names.items()}
        if found := {name: curve for name, curve in found.items() if np.isfinite(curve.values).any()}:
            drawn.append((title, unit, found))
    if not drawn:
        return None
    figure, axes = panels(len(drawn))
    for axis, (title, unit, found) in zip(axes, drawn, strict=True):
        means = {name: curve.values.mean(1) for name, curve in found.items()}
        for index, (name, values) in enumerate(means.items()):
            axis.plot(found[name].steps, values, ".-", color=colour(index), label=name, linewidth=1.3, markersize=4)
        axis.set(title=title, xlabel="step", ylabel=unit)
        logarithmic(axis, [value for values in means.values() for value in values])
        if len(found) > 1:
            axis.legend()
            if axis.get_yscale() == "linear":
                axis.set_ylim(bottom=0)  # two sizes are compared
    return to_svg(figure, "Diagnostics of the particles over steps")


def heat_maps(run: Run) -> str | None:
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
    figure, axes = panels(len(found), (3.9, 3.2))
    for axis, (title, matrix) in zip(axes, found.items(), strict=True):
        M = len(matrix)
        mesh = axis.pcolormesh(matrix, cmap="viridis", edgecolors="none")
        axis.figure.colorbar(mesh, ax=axis, shrink=0.85).outline.set_visible(False)
        axis.grid(False)
        axis.set(aspect="equal", xlabel="particle", ylabel="particle", title=title)
        for set_ticks in (axis.set_xticks, axis.set_yticks):
            ticks = range(0, M, math.ceil(M / 10))
            set_ticks([tick + 0.5 for tick in ticks], [str(tick + 1) for tick in ticks])
        axis.invert_yaxis()
        # Viridis is dark below the middle, where black text would not be legible.
        middle = matrix.min() + 0.6 * (matrix.max() - matrix.min())
        for (i, j), value in np.ndenumerate(matrix if M <= 8 else matrix[:0]):
            shade = "w" if value <= middle else "k"
            axis.text(j + 0.5, i + 0.5, f"{value:.3g}", ha="center", va="center", size=8, color=shade)
    return to_svg(figure, "Distances between the particles and their kernel matrix")


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
    axis.set_xlabel("held-out loss (nats)")
    legend(figure, [axis])
    return to_svg(figure, "Held-out loss of the particles and of their mean")


# Map of prompts


def task_maps(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return one map, with its caption, per width of the prompts: other backbones have other spaces.

    Prompts are averaged over their rows first: flattened prompts are nearly orthogonal whatever their tasks
    (docs/method.md, section 1), so a map of those would show nothing. Fewer than three prompts make no map.
    """
    by_width: dict[int, dict[str, Floats]] = {}
    for run in runs:
        for name, prompt in run.prompts.items():
            full = name if len(runs) == 1 else f"{run.name}: {name}"
            by_width.setdefault(prompt.shape[1], {})[full] = prompt.mean(0)
    caption = "Each prompt averaged over its rows, then projected on two principal components."
    maps = []
    for prompts in (each for each in by_width.values() if len(each) >= 3):
        points, shares = principal_components(np.stack(list(prompts.values())))
        figure, (axis,) = panels(1, (6.6, 4.2))
        for name, (x, y) in zip(prompts, points, strict=True):
            particle = name.rpartition(": ")[2].startswith("particle ")
            axis.plot([x], [y], "o" if particle else "s", color=colour(0 if particle else 1), markersize=7)
            axis.annotate(short(name), (x, y), xytext=(6, 4), textcoords="offset points", size=8)
        axis.margins(0.18)
        axis.set_xlabel(f"first component ({shares[0]:.0%} of the variance, embedding units)")
        axis.set_ylabel(f"second component ({shares[1]:.0%})")
        axis.set_aspect("equal", adjustable="datalim")
        maps.append((to_svg(figure, "Map of the prompts"), caption))
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
