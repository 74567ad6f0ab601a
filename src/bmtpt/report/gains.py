"""One method against every other one, averaged over targets: the differences of a comparison at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bmtpt.errors import ArtifactError
from bmtpt.report.names import MEASURES, direction, display_name
from bmtpt.report.statistics import Interval, check_known, contenders, few_stages, interval, paired, together, unit_name
from bmtpt.report.table import Table, records_of
from bmtpt.report.tables import FEW_STAGES, interval_record, interval_text, mean_and_error

BETTER, WORSE = "▲", "▼"
FEWEST_TARGETS = 3
"""Targets that are a sample of tasks; with fewer there is no interval over targets."""


def gains(lines: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return the paired differences method − other, averaged over targets, of one metric.

    Args:
        lines: Of one metric, with any numbers of shots.
        method: One contender.

    Returns:
        One row per other contender and number of shots, for those that share every target of the method: `other`,
        `shots` (NaN for all rows), `stages` (the `Interval` over source stages, targets fixed) and `tasks` (the one
        over targets, or None with fewer than three).

    Raises:
        ArtifactError: The method has no results.
    """
    check_known(lines, method)
    found: list[dict[str, Any]] = []
    for shots, own in lines.groupby("shots", dropna=False):
        rows = set(own[own.contender == method].row)
        for other in contenders(own):
            if other == method or not rows:
                continue
            difference = paired(own, method, other)
            over_stages = together(difference)
            if over_stages is None or set(difference) != rows:
                continue
            tasks = interval(difference.dropna().mean()) if len(rows) >= FEWEST_TARGETS else None
            found.append({"other": other, "shots": shots, "stages": over_stages, "tasks": tasks})
    return pd.DataFrame(found, columns=["other", "shots", "stages", "tasks"])


def gain_table(lines: pd.DataFrame, method: str) -> Table:
    """Show `gains` as a table of the other contenders by numbers of shots; the last row counts clear differences.

    Raises:
        ArtifactError: The method has no results, or shares its targets with no other one.
    """
    found, metric = gains(lines, method), str(lines.metric.iloc[0])
    if found.empty:
        raise ArtifactError(
            f"no other method has results on every target of '{method}', so there is nothing to compare"
        )
    columns: dict[str, dict[str, str]] = {}
    counts: dict[str, str] = {}
    for shots, own in found.groupby("shots", dropna=False):
        name = "all rows" if pd.isna(shots) else f"{shots:.0f} shots"
        for heading, cells in ((name, own.stages), (f"{name}, new tasks", own.tasks)):
            if cells.notna().any():
                signs = [_sign(each, metric) for each in cells]
                texts = [
                    f"{interval_text(each, metric)} {sign}".strip() for each, sign in zip(cells, signs, strict=True)
                ]
                columns[heading] = dict(zip(own.other.map(display_name), texts, strict=True))
                counts[heading] = f"{signs.count(BETTER)}, {signs.count(WORSE)} of {len(signs)}"
    text = pd.DataFrame(columns).fillna("–")
    size = text.size
    if direction(metric):
        text.loc["clearly better, clearly worse"] = counts
    body = tuple(text.itertuples(name=None))
    heads, notes = (f"{display_name(method)} minus", *text.columns), _notes(lines, method, size)
    records = [
        {"method": method, "baseline": gain.other, "shots": gain.shots, "metric": metric, "over": over}
        | interval_record(each)
        for gain in found.itertuples()
        for over, each in ((f"{unit_name(lines)}s", gain.stages), ("targets", gain.tasks))
    ]
    return Table(heads, body, notes, records=records_of("gains", pd.DataFrame(records)))


def _sign(found: Interval | None, metric: str) -> str:
    if found is None or not found.low * found.high > 0 or not direction(metric):
        return ""
    return BETTER if found.mean * direction(metric) > 0 else WORSE


def _notes(lines: pd.DataFrame, method: str, count: int) -> tuple[str, ...]:
    metric, targets = str(lines.metric.iloc[0]), lines[lines.contender == method].target.nunique()
    note = (
        f"Paired differences in {_unit(metric)}, mean over {targets} target{'s' if targets > 1 else ''}, with 95 % "
        f"intervals: Student's t over {unit_name(lines)}s for these targets, and over targets for new tasks."
    )
    if direction(metric):
        note += (
            f" The interval excludes 0 in favour of the method ({BETTER}) or against it ({WORSE}); of {count} "
            "intervals about one in 20 would by chance alone."
        )
    if direction(metric) < 0:
        note += " Lower is better, so a gain is negative."
    return (note, FEW_STAGES) if few_stages(lines) else (note,)


def _unit(metric: str) -> str:
    return metric if metric in MEASURES else "points"


def floor_table(lines: pd.DataFrame, method: str, floors: Sequence[str]) -> Table:
    """Show on which targets a method is more than one standard error worse than a baseline.

    Args:
        lines: Of one metric.
        method: One contender.
        floors: The baselines.

    Raises:
        ArtifactError: One of them has no results, or the metric does not rank methods.
    """
    metric = str(lines.metric.iloc[0])
    if not direction(metric):
        raise ArtifactError(
            f"'{metric}' does not rank methods, so none is under another in it; take a score, nll or brier"
        )
    columns: dict[str, dict[str, str]] = {}
    counts: dict[str, str] = {}
    records: list[pd.DataFrame] = []
    places = lines.groupby("row")[["target", "shots"]].first()
    for floor in floors:
        difference, name = paired(lines, method, floor), display_name(floor)
        means, errors = difference.mean(), difference.sem()
        under = means * direction(metric) < -errors
        columns[name] = {
            row: mean_and_error(means[row], errors[row], metric) + f" {WORSE}" * bool(under[row]) for row in means.index
        }
        counts[name] = f"{under.sum()} of {errors.notna().sum()}"
        found = pd.DataFrame({"difference": means, "standard_error": errors, "under": under})
        records.append(places.loc[means.index].assign(method=method, baseline=floor, metric=metric).join(found))
    text = pd.DataFrame(columns).fillna("–")
    text.loc["under on"] = counts
    note = (
        f"{display_name(method)} minus the baseline in {_unit(metric)}, paired, ± standard error over "
        f"{unit_name(lines)}s. {WORSE}: more than one standard error worse."
    )
    body = tuple(text.itertuples(name=None))
    return Table(("target", *text.columns), body, (note,), records=records_of("floors", pd.concat(records)))
