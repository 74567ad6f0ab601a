"""Result lines as a data frame, and the choice of the lines that one table is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from bmtpt.errors import ArtifactError, nearest
from bmtpt.report.names import COSTS, MEASURES, SECOND_TABLES, contender
from bmtpt.results import Result
from bmtpt.types import DATA_ORDER

_MAY_BE_MISSING = (
    "source_seed", "moved", "constant_answer", "train_rows", "selection_rows", "kept_bytes", "predict_seconds"
)  # fmt: skip


def frame(results: Iterable[Result]) -> pd.DataFrame:
    """Return one row per line: the line's fields and three more columns; what a line does not say is NaN.

    `contender` is the method with its variant ("bmtpt[particles=7]"), `row` the target with its shots
    ("cb (32 shots)"), and `unit` the independent repetition that a line belongs to: its source stage, or its seed if
    the line names no source stage.
    """
    lines = pd.DataFrame([dict(result) for result in results], columns=list(Result.model_fields))
    lines["contender"] = [contender(*pair) for pair in zip(lines.method, lines.variant, strict=True)]
    lines["row"] = [
        target if pd.isna(shots) else f"{target} ({int(shots)} shots)"
        for target, shots in zip(lines.target, lines.shots, strict=True)
    ]
    lines = lines.astype(dict.fromkeys(_MAY_BE_MISSING, float))
    lines["unit"] = lines.source_seed.fillna(lines.seed)
    lines["data"] = pd.Categorical(lines.data, DATA_ORDER, ordered=True)
    return lines


def with_source_stages(lines: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return older lines, which do not name their source stage, with the one that their seed went with.

    Studies give source stages to seeds in turn: seed s started from stage s modulo their count.
    """
    unnamed = lines.source_seed.isna() & lines.sources.map(len).gt(0) & lines.target.ne("sources")
    named = lines.assign(source_seed=lines.source_seed.mask(unnamed, lines.seed % count))
    return named.assign(unit=named.source_seed.fillna(named.seed))


def of_metric(lines: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the lines of one metric, or one line per run for one of `COSTS`.

    Raises:
        ArtifactError: No line has it.
    """
    if metric in COSTS:
        costs = lines.assign(metric=metric, value=lines[metric].astype(float), constant_answer=float("nan"))
        found = costs[costs.value.notna()]
    else:
        found = lines[lines.metric == metric]
    if found.empty:
        raise ArtifactError(f"no results of the metric '{metric}'; {nearest(metric, {*lines.metric, *COSTS})}")
    return _one_per_run(found)


def with_shots(lines: pd.DataFrame, shots: int) -> pd.DataFrame:
    """Return the lines of one number of labelled rows.

    Raises:
        ArtifactError: No line has it.
    """
    found = lines[lines.shots == shots]
    if found.empty:
        there = ", ".join(str(int(each)) for each in sorted(lines.shots.dropna().unique()))
        raise ArtifactError(f"no results with {shots} shots; there are {there or 'only lines with all rows'}")
    return found


def on_targets(lines: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    """Return the lines of some targets.

    Raises:
        ArtifactError: A target has none.
    """
    there = set(lines.target)
    if missing := [target for target in targets if target not in there]:
        raise ArtifactError(f"no results on target '{missing[0]}'; {nearest(missing[0], there)}")
    return lines[lines.target.isin(targets)]


def by_measure(lines: pd.DataFrame) -> list[pd.DataFrame]:
    """Split lines into those of one table each: all headline scores first, then each measure alone.

    A measure that is not the headline metric gets a table if it is in `SECOND_TABLES` and its method has variants.
    """
    varied = lines.assign(varied=lines.variant != "").groupby(["study", "method"])["varied"].transform("any")
    chosen = lines[lines.primary | (varied & lines.metric.isin(SECOND_TABLES))]
    kind = chosen.metric.where(chosen.metric.isin(MEASURES), "")
    groups = dict(list(chosen.groupby(kind, sort=False)))
    return [_one_per_run(groups[name]) for name in sorted(groups, key=bool)]


def _one_per_run(lines: pd.DataFrame) -> pd.DataFrame:
    """Keep the last line of a run that was written twice (a resumed study).

    Raises:
        ArtifactError: A method's lines on a target mix backbones, metrics, or two settings under one seed.
    """
    run = ["study", "backbone", "row", "contender", "metric", "seed", "source_seed", "settings_hash"]
    lines = lines.drop_duplicates(run, keep="last")
    cell = lines.groupby(["row", "contender"], sort=False)
    for name in ("backbone", "metric"):
        mixed = lines[cell[name].transform("nunique") > 1]
        if not mixed.empty:
            found = " and ".join(sorted(mixed[mixed.row == mixed.row.iloc[0]][name].unique()))
            raise ArtifactError(f"{_where(mixed)} mix {found}; summarise one {name} at a time")
    twice = lines[lines.duplicated(["row", "contender", "seed", "source_seed"])]
    if not twice.empty:
        raise ArtifactError(
            f"{_where(twice)} have seed {twice.seed.iloc[0]} under several studies or settings, which cannot be "
            "averaged; summarise one study at a time, or keep the lines of one settings_hash"
        )
    return lines


def _where(lines: pd.DataFrame) -> str:
    return f"the results of '{lines.contender.iloc[0]}' on '{lines.target.iloc[0]}'"
