"""Which result lines a table is made of: one metric, one number of examples, some targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bmtpt.errors import ArtifactError, nearest
from bmtpt.report.summary import COSTS, without_repeats
from bmtpt.results import Result


def of_metric(results: Iterable[Result], metric: str) -> list[Result]:
    """Return the lines of one metric, or one line per run for one of `COSTS`, as if it were the headline.

    Raises:
        ArtifactError: No line has it.
    """
    rows = list(results)
    if metric in COSTS:
        changes = {"metric": metric, "primary": True, "constant_answer": None}
        return list(without_repeats(row.model_copy(update=changes | {"value": getattr(row, metric)}) for row in rows))
    found = [row.model_copy(update={"primary": True}) for row in rows if row.metric == metric]
    if not found:
        raise ArtifactError(
            f"no results of the metric '{metric}'; {nearest(metric, {row.metric for row in rows} | COSTS.keys())}"
        )
    return found


def with_shots(results: Iterable[Result], shots: int) -> list[Result]:
    """Return the lines of one number of training examples.

    Raises:
        ArtifactError: No line has it.
    """
    rows = list(results)
    found = [row for row in rows if row.shots == shots]
    if not found:
        there = ", ".join(str(each) for each in sorted({row.shots for row in rows if row.shots}))
        raise ArtifactError(f"no results with {shots} shots; there are {there or 'only lines with all rows'}")
    return found


def on_targets(results: Iterable[Result], targets: Sequence[str]) -> list[Result]:
    """Return the lines of some targets.

    Raises:
        ArtifactError: A target has none.
    """
    rows = list(results)
    there = {row.target for row in rows}
    if missing := [target for target in targets if target not in there]:
        raise ArtifactError(f"no results on target '{missing[0]}'; {nearest(missing[0], there)}")
    return [row for row in rows if row.target in targets]
