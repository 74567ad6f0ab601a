"""What the cells and notes of every table say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from bmtpt.report.layout import Entry, number
from bmtpt.report.summary import MEASURES, Cell, Interval, Row, standard_error_of

Score = tuple[float, float | None]
"""A mean and its standard error."""

COSTS_NOTE = (
    "Trained numbers and seconds (mean wall time, beside whatever ran there) are the target stage's, without the "
    "source stages."
)
"""What the costs beside scores are."""


def row_words(row: Row) -> tuple[Entry, Entry]:
    """Return target and shots."""
    return Entry(row[0]), Entry("all" if row[1] is None else str(row[1]))


def row_name(row: Row) -> str:
    """Return target and shots in one text."""
    return row[0] if row[1] is None else f"{row[0]} ({row[1]} shots)"


def mean_over_targets(cells: Sequence[Cell]) -> Score:
    """Mean of the cells, with the standard error over seed means if every target has the same seeds."""
    mean = fmean(cell.mean for cell in cells)
    if len({cell.seeds for cell in cells}) > 1:
        return mean, None
    by_seed = [fmean(values) for values in zip(*(cell.values for cell in cells), strict=True)]
    return mean, standard_error_of(by_seed)


def score_entries(scores: Sequence[Score | None], metric: str) -> list[Entry]:
    """Return the entries that compete, the best marked (all of them on a tie); a measure has no best."""
    best = max((score[0] for score in scores if score), default=math.nan)
    ranked = metric not in MEASURES
    return [
        Entry(score_text(score, metric), best=ranked and _equal(score[0], best)) if score else Entry("–")
        for score in scores
    ]


def score_text(score: Score, metric: str) -> str:
    """Return mean ± standard error."""
    mean, error = score
    return figure(mean, metric) if error is None else f"{figure(mean, metric)} ± {figure(error, metric)}"


def figure(value: float, metric: str) -> str:
    """Return a score with one decimal, and a measure with three digits or as a whole number.

    >>> figure(54.321, "accuracy"), figure(-0.0054321, "loss_rise"), figure(10772, "trained_parameters")
    ('54.3', '−0.00543', '10,772')
    """
    if metric not in MEASURES:
        return number(value)
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")


def unit(metric: str) -> Entry:
    """Return what differences are counted in: points of a score, or the measure's own unit."""
    return Entry(metric if metric in MEASURES else "points")


def interval_text(interval: Interval | None, metric: str) -> str:
    """Return a difference and its 95 % interval."""
    if interval is None:
        return "–"
    mean = figure(interval.mean, metric)
    if interval.low is None or interval.high is None:
        return mean
    return f"{mean} [{figure(interval.low, metric)}, {figure(interval.high, metric)}]"


def trained_numbers(cells: Sequence[Cell]) -> Entry:
    """Return how many numbers a method trains for a target: a range where targets differ."""
    found = [cell.trained_parameters for cell in cells]
    low, high = f"{min(found):,}", f"{max(found):,}"
    return Entry(low if low == high else f"{low} to {high}")


def mean_seconds(cells: Sequence[Cell]) -> Entry:
    """Return the mean wall time of a method's target stages."""
    return Entry(figure(fmean(cell.seconds for cell in cells), "seconds"))


def notes(rows: Mapping[Row, Mapping[str, Cell]]) -> list[str]:
    """Return the sentences under a table: seeds, metrics, targets on which nothing beats a constant answer, costs."""
    cells = [cell for by_method in rows.values() for cell in by_method.values()]
    counts = sorted({len(cell.seeds) for cell in cells})
    metrics: dict[str, dict[str, None]] = {}
    for cell in cells:
        metrics.setdefault(cell.metric, {})[cell.target] = None
    seeds = _seeds(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    mean = f"Mean{'' if counts[-1] == 1 else ' ± standard error'} over {seeds}"
    found = [f"{mean}{_kind(metrics)}."]
    if weak := [row_name(row) for row, by_method in rows.items() if _no_better_than_constant(by_method)]:
        found.append(f"No method is above the constant answer on {', '.join(weak)}: these rows show nothing.")
    return found if set(metrics) & MEASURES.keys() else [*found, COSTS_NOTE]


def _kind(metrics: Mapping[str, Mapping[str, None]]) -> str:
    named = "; ".join(f"{metric} ({', '.join(targets)})" for metric, targets in metrics.items())
    measures = [f"{metric} is {MEASURES[metric]}" for metric in metrics if metric in MEASURES]
    return f": {'; '.join(measures)}" if measures else f", 0 to 100: {named}"


def _no_better_than_constant(cells: Mapping[str, Cell]) -> bool:
    constants = [cell.constant_answer for cell in cells.values() if cell.constant_answer is not None]
    return bool(constants) and max(cell.mean for cell in cells.values()) <= max(constants) + 1e-9


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _equal(left: float, right: float) -> bool:
    return math.isclose(left, right, abs_tol=1e-9)  # means of the same scores may differ in the last bit
