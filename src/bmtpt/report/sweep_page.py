"""The page of a sweep: all trials as a table, the best score so far, and the score over each setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.report.chart import Chart, Mark, chart
from bmtpt.report.names import direction
from bmtpt.report.svg import INK, colour, panels, short, style
from bmtpt.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class SweepTrial(NamedTuple):
    """Settings that were tried.

    Attributes:
        settings: By dotted option.
        scores: Of the cells that were run, seed by seed.
        complete: Whether these are all; otherwise it was stopped early, or failed.
        why: It failed, if it did.
    """

    number: int
    settings: dict[str, Any]
    scores: tuple[float, ...]
    complete: bool
    why: str = ""

    @property
    def score(self) -> float:
        """The mean over its cells; NaN without any."""
        return fmean(self.scores) if self.scores else float("nan")

    @property
    def state(self) -> str:
        """For people."""
        return "complete" if self.complete else "failed" if self.why else f"stopped after {len(self.scores)}"


def best_of(trials: Sequence[SweepTrial], metric: str) -> SweepTrial | None:
    """Return the first trial with the best score, of those that are complete."""
    complete = [trial for trial in trials if trial.complete]
    return max(complete, key=lambda trial: direction(metric) * trial.score, default=None)


def write_sweep_page(path: Path, name: str, trials: Sequence[SweepTrial], metric: str) -> Path:
    """Write the page; raise an ArtifactError if that cannot be done."""
    from bmtpt.report.html import page

    ranked = sorted(trials, key=lambda each: (not each.complete, -direction(metric) * each.score, each.number))
    with style():
        text = page(
            "sweep.html",
            name=name,
            metric=metric,
            trials=len(trials),
            best=best_of(trials, metric),
            progress=_progress(trials, ranked, metric),
            settings=_over_settings(ranked, metric),
        )
    write_text_atomically(path, text)
    return path


def _table(ranked: Sequence[SweepTrial], metric: str) -> Table:
    options = list(ranked[0].settings)
    rows = [
        (
            str(trial.number),
            f"{trial.state}: {trial.why}" if trial.why else trial.state,
            *(str(trial.settings[option]) for option in options),
            f"{trial.score:.4g}" if trial.scores else "–",
            str(len(trial.scores)),
        )
        for trial in ranked
    ]
    return Table(("trial", "state", *options, metric, "cells"), tuple(rows), words=2)


def _progress(trials: Sequence[SweepTrial], ranked: Sequence[SweepTrial], metric: str) -> Chart:
    figure, (panel,) = panels(1, (5.2, 3.0))
    complete = [trial for trial in trials if trial.complete]
    so_far = [best_of(trials[: trial.number + 1], metric) for trial in complete]
    panel.step([t.number for t in complete], [t.score for t in so_far if t], where="post", color=colour(0), linewidth=2)
    marks = _dots(panel, [(float(trial.number), trial) for trial in ranked])
    panel.set_xlabel("trial")
    panel.set_ylabel(f"mean {metric}")
    panel.set_title("Best score so far", fontweight="bold")
    return chart(figure, f"Mean {metric} of each trial, and the best one so far", _table(ranked, metric), marks)


def _over_settings(trials: Sequence[SweepTrial], metric: str) -> Chart:
    options = list(trials[0].settings)
    figure, axes = panels(len(options))
    marks: list[Mark] = []
    for panel, option in zip(axes, options, strict=True):
        values = [trial.settings[option] for trial in trials]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        names = sorted(set(map(str, values)))
        places = [float(value) if numbers else float(names.index(str(value))) for value in values]
        marks += _dots(panel, list(zip(places, trials, strict=True)))
        if not numbers:
            panel.set_xticks(range(len(names)), [short(name, 14) for name in names])
        elif min(places) > 0 and max(places) >= 8 * min(places):
            panel.set_xscale("log")
        panel.set_xlabel(option)
        panel.set_ylabel(f"mean {metric}" if panel is axes[0] else "")
    return chart(figure, f"Mean {metric} over each setting", _table(trials, metric), marks)


def _dots(panel: Axes, placed: Sequence[tuple[float, SweepTrial]]) -> list[Mark]:
    """Draw complete trials as filled dots and those that were stopped as rings; failed ones have no score."""
    for complete in (True, False):
        own = [(x, trial.score) for x, trial in placed if trial.complete == complete and trial.scores]
        xs, scores = [x for x, _ in own], [score for _, score in own]
        panel.scatter(xs, scores, s=22, facecolors=INK if complete else "none", edgecolors=INK, alpha=0.7)
    return [Mark(panel, x, trial.score, row) for row, (x, trial) in enumerate(placed) if trial.scores]
