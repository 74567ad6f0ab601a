"""Figures of training runs: loss curves and particle diagnostics over steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bmtpt.report.chart import Chart, Mark, chart
from bmtpt.report.names import figure as number
from bmtpt.report.runs import Event, Floats, Run, mapping, number_of, numbers_of
from bmtpt.report.svg import COLUMNS, INK, colour, legend, logarithmic, panels, short
from bmtpt.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS_IN_ALL = 6_000  # of all runs; with their numbers about a quarter of a megabyte
LONGEST_LEGEND = 8
TRAINING = "training"


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


class Losses(NamedTuple):
    """Of one task: training losses, thinned, and on held-out rows those of the particles and of their mean."""

    training: Series
    held_out: Series
    mean: Series

    @property
    def steps(self) -> list[float]:
        """All steps with a loss."""
        return sorted({*self.training.steps, *self.held_out.steps, *self.mean.steps})


def loss_curves(run: Run, points: int = POINTS_IN_ALL) -> Chart | None:
    """Draw, per task, the training loss of each particle (faint), its held-out NLL, and that of the mean.

    Args:
        run: What was logged.
        points: Roughly how many values of the training losses may be drawn.
    """
    found = _losses(run, points)
    if not found:
        return None
    # A target's starts compete as candidates, a posterior has particles.
    compete = run.card.get("kind") == "prompt" or any("candidate_scores" in each for each in run.of_kind("validation"))
    what, label = "candidate" if compete else "particle", "Loss per task"
    M = max(each.values.shape[1] for losses in found.values() for each in losses[:2])
    columns = [*(f"{what} {m + 1}" for m in range(M)), *([] if compete else ["mean of the particles"])]
    entries = [(task, *entry) for task, losses in found.items() for entry in _entries(losses, M)]
    rows = [
        (task, kind, f"{step:g}", *(number(value, "loss") for value in values[: len(columns)]))
        for task, kind, step, values in entries
    ]
    table = Table(("task", "rows", "step", *columns), tuple(rows), words=3)
    drawn = [task for task, losses in found.items() if len(losses.steps) > 1]
    if not drawn:
        return Chart(label, table)
    figure, axes = panels(len(drawn))
    of_task = dict(zip(drawn, axes, strict=True))
    for index, (task, panel) in enumerate(of_task.items()):
        _draw_losses(panel, found[task], what)
        panel.set_title(short(task), fontweight="bold")
        panel.set_xlabel("step")
        if index % COLUMNS == 0:
            panel.set_ylabel("loss (nats)")
    legend(figure, axes)
    marks = [
        Mark(of_task[task], step, value, row, 3 + m)
        for row, (task, _, step, values) in enumerate(entries)
        if task in of_task
        for m, value in enumerate(values)
    ]
    return chart(figure, label, table, marks)


def _losses(run: Run, points: int) -> dict[str, Losses]:
    """Return the losses of every task that has any."""
    steps, checks = run.of_kind("step"), run.of_kind("validation")
    held_out = [{**event, "held out": event.get("particle_nll") or event.get("loss")} for event in checks]
    tasks = dict.fromkeys(
        [task for event in steps for task in mapping(event.get("loss"))]
        + [task for event in held_out for task in mapping(event["held out"])]
    )
    found = {
        task: Losses(series(steps, "loss", task), series(held_out, "held out", task), series(checks, "mean_nll", task))
        for task in tasks
    }
    found = {task: each for task, each in found.items() if each.steps}
    curves = sum(each.training.values.shape[1] for each in found.values()) or 1
    most = max(20, min(300, points // curves))
    return {task: each._replace(training=thin(each.training, most)) for task, each in found.items()}


def _entries(losses: Losses, M: int) -> list[tuple[str, float, list[float]]]:
    """Return what a table of losses says of a task: which rows, the step, and M particles' losses and their mean's."""
    means = dict(zip(losses.mean.steps, losses.mean.values[:, 0], strict=True)) if len(losses.mean.steps) else {}
    return [
        (
            kind,
            step,
            [*values, *[math.nan] * (M - len(values)), means.get(step, math.nan) if kind != TRAINING else math.nan],
        )
        for kind, (steps, found) in ((TRAINING, losses.training), ("held out", losses.held_out))
        for step, values in zip(steps, found, strict=True)
    ]


def _draw_losses(panel: Axes, losses: Losses, what: str) -> None:
    training, own, mean = losses
    many = max(training.values.shape[1], own.values.shape[1]) > LONGEST_LEGEND
    for m, curve in enumerate(training.values.T):
        panel.plot(training.steps, curve, color=colour(m), alpha=0.35, linewidth=0.9)
    for m, curve in enumerate(own.values.T):
        name = f"{what}s" if many else f"{what} {m + 1}"
        panel.plot(own.steps, curve, ".-", color=colour(m), label=name, linewidth=1.3, markersize=4)
    for curve in mean.values.T:
        panel.plot(mean.steps, curve, "D--", color=INK, label="mean of the particles", linewidth=1.3, markersize=3)
    logarithmic(panel, [*training.values.flat, *own.values.flat, *mean.values.flat])


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


def diagnostics_curves(run: Run) -> Chart | None:
    """Draw the logged diagnostics of the particles over steps; one number per row (kernel scope "row") as its mean."""
    events = run.of_kind("diagnostics")
    found = {name: series(events, "diagnostics", key) for *_, names in _CURVES for name, key in names.items()}
    means = {
        name: dict(zip(curve.steps, curve.values.mean(1), strict=True))
        for name, curve in found.items()
        if np.isfinite(curve.values).any()
    }
    if not means:
        return None
    label, steps = "Diagnostics of the particles", sorted({step for curve in means.values() for step in curve})
    rows = [(f"{at:g}", *(number(curve.get(at, math.nan), "spread") for curve in means.values())) for at in steps]
    table = Table(("step", *means), tuple(rows))
    drawn = [
        (title, unit, own)
        for title, unit, names in _CURVES
        if (own := {name: means[name] for name in names if len(means.get(name, {})) > 1})
    ]
    if not drawn:
        return Chart(label, table)
    figure, axes = panels(len(drawn))
    marks: list[Mark] = []
    for axis, (title, unit, own) in zip(axes, drawn, strict=True):
        for index, (name, curve) in enumerate(own.items()):
            axis.plot([*curve], [*curve.values()], ".-", color=colour(index), label=name, linewidth=1.3, markersize=4)
            column = table.header.index(name)
            marks += [Mark(axis, step, value, steps.index(step), column) for step, value in curve.items()]
        axis.set(title=title, xlabel="step", ylabel=unit)
        logarithmic(axis, [value for curve in own.values() for value in curve.values()])
        if len(own) > 1:
            axis.legend()
            if axis.get_yscale() == "linear":
                axis.set_ylim(bottom=0)  # two sizes are compared
    return chart(figure, label, table, marks)
