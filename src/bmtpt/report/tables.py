"""Score tables, difference tables and published scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bmtpt.errors import ArtifactError
from bmtpt.report.names import LOSSES, MEASURES, direction, display_name, figure, method_and_variant, number
from bmtpt.report.statistics import (
    CLOSE,
    ENOUGH_STAGES,
    Interval,
    check_known,
    contenders,
    few_stages,
    interval,
    over_targets,
    paired,
    pairs_to_compare,
    scores,
    together,
    unit_name,
)
from bmtpt.report.table import Best, Records, Table, records_of
from bmtpt.yaml_files import read_yaml

MEAN, ALL, SAMPLE = "mean over targets", "all together", "targets as a sample"
CONSTANT = "constant answer"
TRAINED = "trained numbers"
NO_SOURCES = (
    "These lines do not name their source stage, and several seeds may share one: standard errors and intervals over "
    "seeds are then too narrow."
)


SCORE_KEYS = {
    "contender": "method",
    "target": "target",
    "shots": "shots",
    "metric": "metric",
    "mean": "mean",
    "error": "standard_error",
    "units": "units",
    "runs": "runs",
    "constant": "constant_answer",
    "data": "data",
    "moved": "moved",
    "trained": "trained_parameters",
    "share": "trained_share",
    "kept": "kept_bytes",
    "seconds": "seconds",
    "answering": "predict_seconds",
}
"""Keys of a score's record by column of `scores`."""

FEW_STAGES = (
    f"A finding needs {ENOUGH_STAGES} source stages. Intervals over fewer are wide, and now and then narrow by chance; "
    "there is none from one."
)


def score_table(lines: pd.DataFrame) -> Table:
    """Pivot the scores to targets × contenders, the longer side down: mean ± standard error, the best marked.

    Also shown: the mean over targets if every contender has all of them, the best constant answer, the data status and,
    for scores and losses, what a target costs: trained numbers (with their share of the backbone) and seconds.
    """
    found, names, rows = scores(lines), contenders(lines), list(dict.fromkeys(lines.row))
    metric = lines.metric.iloc[0]
    mean, error = (found.pivot(index="contender", columns="row", values=each) for each in ("mean", "error"))
    if len(rows) > 1 and mean.notna().all(axis=None):
        mean[MEAN], error[MEAN] = over_targets(lines).T.to_numpy()
    columns = [*rows, *(mean.columns.difference(rows))]
    text = pd.DataFrame({c: _ranked(mean[c].reindex(names), error[c].reindex(names), metric) for c in columns})
    constants = found.groupby("row")["constant"].first()
    if constants.notna().any():
        constants[MEAN] = constants.reindex(rows).mean(skipna=False)
        text.loc[CONSTANT] = [number(constants[column]) for column in columns]
    text.loc["data status"] = [*found.groupby("row")["data"].max().astype(str).reindex(rows), ""][: len(columns)]
    own = found.groupby("contender")
    if found.moved.notna().any():
        text["prompts moved"] = own["moved"].mean().map(lambda share: "–" if pd.isna(share) else f"{100 * share:.0f} %")
    if metric not in MEASURES or metric in LOSSES:
        text[TRAINED] = own[["trained", "share"]].apply(_trained)
        if found.kept.notna().any():
            text["bytes kept"] = own["kept"].mean().map(lambda kept: figure(kept, "kept_bytes"))
        text["wall seconds"] = own["seconds"].mean().map(lambda seconds: figure(seconds, "seconds"))
        if found.answering.notna().any():
            text["ms per answer"] = 1000 * own["answering"].mean()
            text["ms per answer"] = text["ms per answer"].map(lambda ms: figure(ms, "predict_seconds"))
    text = text.fillna("–").rename(index=display_name)
    return _table(text, "method", len(rows) >= len(names), _notes(lines, found), _score_records(found, mean, error))


def _score_records(found: pd.DataFrame, mean: pd.DataFrame, error: pd.DataFrame) -> Records:
    scores = found.rename(columns=SCORE_KEYS)[[*SCORE_KEYS.values()]]
    if MEAN in mean:
        over = {"method": mean.index, "target": MEAN, "metric": found.metric.iloc[0]}
        scores = pd.concat([scores, pd.DataFrame(over | {"mean": mean[MEAN], "standard_error": error[MEAN]})])
    return records_of("scores", scores)


def _ranked(mean: pd.Series, error: pd.Series, metric: str) -> pd.Series:
    """Return mean ± standard error, the best marked (all of them on a tie); a measure without a direction has none."""
    gain = direction(metric) * mean
    best = (gain >= gain.max() - CLOSE) & (direction(metric) != 0)

    def text(value: float, deviation: float, is_best: bool) -> str:
        shown = mean_and_error(value, deviation, metric)
        return Best(shown) if is_best else shown

    return pd.Series(map(text, mean, error, best), index=mean.index, dtype=object)


def mean_and_error(mean: float, error: float, metric: str) -> str:
    """Return a mean with its standard error, if there is one: "54.3 ± 1.2"."""
    return figure(mean, metric) + ("" if pd.isna(error) else f" ± {figure(error, metric)}")


def _trained(cells: pd.DataFrame) -> str:
    """Return the count, or its range over targets, with its largest share of the backbone."""
    low, high = f"{cells.trained.min():,}", f"{cells.trained.max():,}"
    percent = 100 * cells.share.max()
    share = f" ({percent:.{2 if percent < 10 else 3}g} %)" if percent > 0 else ""
    return (low if low == high else f"{low} to {high}") + share


def _table(text: pd.DataFrame, label: str, targets_down: bool, notes: Sequence[str], records: Records) -> Table:
    """Make a table of texts whose columns are targets; `label` names its rows."""
    if targets_down:
        text, label = text.T, "target"
    body = tuple((str(name), *row) for name, *row in text.reset_index().to_numpy())
    return Table((label, *text.columns), body, tuple(notes), records=records)


def _notes(lines: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    metrics = lines.groupby("metric", sort=False)["target"].unique()
    kinds = "; ".join(
        f"{metric} is the {MEASURES[metric]}" if metric in MEASURES else f"{metric} ({', '.join(targets)})"
        for metric, targets in metrics.items()
    )
    scale = "" if lines.metric.isin(MEASURES).any() else ", 0 to 100"
    several = found.units.max() > 1
    notes = [f"Mean{' ± standard error' if several else ''} over {_repetitions(found)}{scale}: {kinds}."]
    if direction(lines.metric.iloc[0]) < 0:
        notes[0] += " Lower is better."
    unnamed = lines.sources.map(len).gt(0) & lines.source_seed.isna() & (lines.target != "sources")
    if unnamed.any() and several:
        notes.append(NO_SOURCES)
    if lines.train_rows.notna().any():
        train, chosen = _span(lines.train_rows), _span(lines.selection_rows.fillna(0))
        notes.append(f"Labelled rows per run: {train} to train and {chosen} to choose what is kept.")
    top = found.groupby("row", sort=False)[["mean", "constant"]].max()
    if weak := list(top.index[top["mean"] <= top.constant + CLOSE]):
        notes.append(f"No method beats the constant answer on {', '.join(weak)}: such targets tell nothing.")
    if not lines.metric.isin(MEASURES).any() or lines.metric.isin(LOSSES).any():
        notes.append("Trained numbers and wall seconds (a mean; machine and load vary) exclude the source stages.")
    return notes


def _repetitions(found: pd.DataFrame) -> str:
    staged, plain = found[found.staged], found[~found.staged]
    seeds = "" if plain.empty else _count(plain.units, "seed")
    if staged.empty:
        return seeds
    stages = f"{_count(staged.units, 'source stage')} ({_count(staged.runs, 'run')})"
    return f"{stages}, or {seeds} for methods without one" if seeds else stages


def _count(values: pd.Series, noun: str) -> str:
    return f"{_span(values)} {noun}{'s' if values.max() > 1 else ''}"


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:.0f} to {high:.0f}" if low < high else f"{high:.0f}"


# Differences


def difference_table(lines: pd.DataFrame, method: str = "bmtpt") -> Table:
    """Pivot paired differences and their 95 % intervals to pairs (see `pairs_to_compare`) × targets.

    After the targets: all of them together (fixed targets, other seeds or source stages), and from three targets on the
    interval over targets, which is the one to read if they are to represent new tasks.

    Raises:
        ArtifactError: The method has no results.
    """
    names, metric = contenders(lines), lines.metric.iloc[0]
    if method not in {method_and_variant(name)[0] for name in names}:
        check_known(lines, method)
    columns: dict[str, dict[str, str]] = {}
    records: list[dict[str, Any]] = []
    places = lines.groupby("row")[["target", "shots"]].first().to_dict("index")
    for left, right in pairs_to_compare(names, method):
        found = paired(lines, left, right)
        intervals: dict[str, Interval | None] = {row: interval(found[row].dropna()) for row in found}
        if len(intervals) > 1:
            intervals[ALL] = together(found)
        if len(intervals) > 3:
            intervals[SAMPLE] = interval(found.mean())
        pair = f"{display_name(left)} − {display_name(right)}"
        columns[pair] = {row: interval_text(each, metric) for row, each in intervals.items()}
        for row, each in intervals.items():
            place = places.get(row, {"target": row, "shots": None})
            records.append({"method": left, "baseline": right, **place, "metric": metric} | interval_record(each))
    text = pd.DataFrame(columns).T.fillna("–")
    rows = [row for row in dict.fromkeys(lines.row) if row in text]
    text = text[[*rows, *(name for name in (ALL, SAMPLE) if name in text)]]
    unit = metric if metric in MEASURES else "points"
    notes = [f"Paired differences in {unit} with 95 % intervals (Student's t over {unit_name(lines)}s)."]
    if few_stages(lines):
        notes.append(FEW_STAGES)
    elif text.size > 1:
        count = len(rows) * len(text)
        notes.append(f"Of {count} differences about one in 20 would have an interval without 0 by chance alone.")
    return _table(text, "difference", len(rows) >= len(text), notes, records_of("differences", pd.DataFrame(records)))


def interval_record(found: Interval | None) -> dict[str, Any]:
    """Return a difference with its interval for programs."""
    mean, low, high, n = found or (None, None, None, 0)
    return {"difference": mean, "low": low, "high": high, "units": n}


def interval_text(found: Interval | None, metric: str) -> str:
    """Return a difference with its interval: "1.4 [−0.2, 3.0]"."""
    if found is None or pd.isna(found.mean):
        return "–"
    mean = figure(found.mean, metric)
    return mean if found.n < 2 else f"{mean} [{figure(found.low, metric)}, {figure(found.high, metric)}]"


# Published scores


def read_published() -> dict[str, Any]:
    """Return the published scores, their sources and the cautions that go with them."""
    return read_yaml(Path(__file__).with_name("published.yaml"))


def published_table(lines: pd.DataFrame) -> Table:
    """Show our scores and the published ones by target, with the cautions as notes. Nothing is marked as best.

    Raises:
        ArtifactError: No target of the results has published scores.
    """
    published, found = read_published(), scores(lines)
    known = {target for method in published["methods"] for target in method["scores"]}
    targets = [target for target in dict.fromkeys(lines.target) if target in known]
    if not targets:
        there = ", ".join(sorted(set(lines.target)))
        raise ArtifactError(f"nothing is published for {there}; the targets with published scores: {sorted(known)}")
    found = found[found.target.isin(targets)]
    backbone = lines.backbone.iloc[0]
    ours = []
    for (shots, name), own in found.groupby(["shots", "contender"], sort=False, dropna=False):
        score = {each.target: mean_and_error(each.mean, each.error, each.metric) for each in own.itertuples()}
        words = (display_name(name), "all" if pd.isna(shots) else f"{shots:.0f}", f"{backbone}, ours")
        ours.append((*words, f"{own.trained.max():,}", *(score.get(target, "–") for target in targets)))
    order = {display_name(name): place for place, name in enumerate(contenders(lines))}
    theirs = []
    for method in published["methods"]:
        where = f"T5-base, published ({', '.join(method['sources'])})"
        values = (number(method["scores"].get(target, float("nan"))) for target in targets)
        theirs.append((method["name"], "all", where, str(method.get("trained", "–")), *values))
    notes = ["Published: " + "; ".join(f"({key}) {text}" for key, text in published["sources"].items()) + "."]
    worst = found.groupby("target", sort=False)["data"].max()
    if other := ", ".join(f"{target} ({status})" for target, status in worst.items() if status != "official"):
        notes.append(f"Our rows of {other} are not the official ones.")
    rows = (*sorted(ours, key=lambda row: order[row[0]]), *theirs)
    header = ("method", "shots", "backbone and source", TRAINED, *targets)
    return Table(header, rows, (*notes, *published["cautions"]), 3, _published_records(found, backbone, targets))


def _published_records(found: pd.DataFrame, backbone: str, targets: Sequence[str]) -> Records:
    ours = found.rename(columns=SCORE_KEYS).assign(backbone=backbone, published=False)
    theirs = [
        {"method": method["name"], "target": target, "mean": float(score), "backbone": "T5-base", "published": True}
        for method in read_published()["methods"]
        for target, score in method["scores"].items()
        if target in targets
    ]
    keys = ["method", "target", "shots", "metric", "mean", "standard_error", "backbone", "published"]
    return records_of("published", pd.concat([ours, pd.DataFrame(theirs)])[keys])
