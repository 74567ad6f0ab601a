"""Scores over seeds: means, standard errors, and paired differences with their intervals.

scipy is imported inside the function that needs it, so a table prints without its import time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from bmtpt.errors import ArtifactError, nearest
from bmtpt.results import Result
from bmtpt.types import DATA_ORDER, DataStatus

DISPLAY_NAMES = {
    "pt": "plain prompt tuning",
    "ptp": "prompt tuning under noise (PTP)",
    "spot": "SPoT",
    "source_mean": "mean of source prompts",
    "source_ensemble": "ensemble of source prompts",
    "attempt": "ATTEMPT",
    "mpt": "MPT",
    "multitask": "multi-task prompt (M = 1)",
    "bmtpt": "BMTPT",
    "bmtpt_no_prior": "BMTPT without the prior",
    "full": "full fine-tuning",
    "bitfit": "BitFit",
    "lora": "LoRA",
    "adapter": "bottleneck adapters",
    "svgd": "SVGD",
    "mean_of_means": "mean of the means",
    "best_single": "best single mean",
    "best_convex": "best convex combination of the means",
    "closed_form": "closed form",
    "posterior": "source posterior",
}
"""How methods are called in print, in the order of the columns; other names are shown as they are."""

COSTS = {
    "seconds": "wall seconds of the stage, on whatever machine and beside whatever ran there",
    "steps": "optimiser steps of the stage",
    "trained_parameters": "numbers trained for the target",
}
"""What every line says of its run, whatever its metric."""

MEASURES = COSTS | {
    "attenuation": "share of the amplitude that is left",
    "covered_modes": "modes that some particle is at",
    "ece": "expected calibration error, 0 to 100",
    "kernel_rank": "particles that act as different ones",
    "loss": "nats per example",
    "loss_rise": "nats per example above the prompt itself",
    "mean_error": "distance from the true mean in standard deviations",
    "mean_gap": "held-back loss of the mean above that of the particles, nats per label token",
    "mean_nll": "held-back loss of the mean, nats per label token",
    "mean_rms": "root mean square of the mean, embedding units",
    "nll": "nats per example",
    "particle_nll": "held-back loss of the particles, nats per label token",
    "repulsion_to_drive": "size of the repulsion over that of the drive, last step",
    "spread": "root mean square distance from the mean, embedding units",
    "stein_discrepancy": "squared kernelised Stein discrepancy, last step",
    "variance_ratio": "variance of the particles over the true one",
}
"""Figures that are no scores from 0 to 100 and of which more is not better: no table marks a best one."""

SECOND_TABLES = frozenset({"covered_modes", "mean_error", "mean_gap", "particle_nll", "spread"})
"""Measures that get a table of their own beside the headline's, where a study varies what they depend on."""

Row = tuple[str, int | None]
"""A row of the table: target and shots (None: all training rows)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The primary metric of one method on one target, over seeds.

    Attributes:
        method: With its variant, if it has one: "bmtpt[particles=7]".
        seeds: The n seeds, ascending.
        values: Their scores, 0 to 100, in the same order.
        constant_answer: Score of the best constant answer (mean over seeds), or None if undefined.
        trained_parameters: Numbers trained for this target (the largest over seeds).
        trained_share: The same as a share (0 to 1) of the backbone.
        seconds: Mean wall time of the target stage.
        data: How the rows relate to the published data set.
    """

    target: str
    shots: int | None
    method: str
    backbone: str
    metric: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    constant_answer: float | None
    trained_parameters: int
    trained_share: float
    seconds: float
    data: DataStatus

    @property
    def row(self) -> Row:
        """Target and shots."""
        return self.target, self.shots

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values)

    @property
    def standard_error(self) -> float | None:
        """Of the mean over seeds: `standard_error_of`."""
        return standard_error_of(self.values)


def summarise(results: Sequence[Result]) -> list[Cell]:
    """Group the primary-metric rows by target, shots, method and variant, in the order in which they appear.

    A row repeated with the same settings and seed (a resumed run) counts once: the last one.

    Raises:
        ArtifactError: A cell would mix backbones, metrics, or two settings under one seed.
    """
    groups: dict[tuple[str, int | None, str], list[Result]] = {}
    for result in without_repeats(results):
        groups.setdefault((result.target, result.shots, contender(result)), []).append(result)
    return [_cell(sorted(rows, key=lambda row: row.seed)) for rows in groups.values()]


def without_repeats(results: Iterable[Result]) -> Iterable[Result]:
    last = {
        (r.study, r.backbone, r.target, r.shots, contender(r), r.metric, r.seed, r.settings_hash): r
        for r in results
        if r.primary
    }
    return last.values()


def _cell(rows: Sequence[Result]) -> Cell:
    _check_comparable(rows)
    constants = [row.constant_answer for row in rows if row.constant_answer is not None]
    return Cell(
        target=rows[0].target,
        shots=rows[0].shots,
        method=contender(rows[0]),
        backbone=rows[0].backbone,
        metric=rows[0].metric,
        seeds=tuple(row.seed for row in rows),
        values=tuple(row.value for row in rows),
        constant_answer=fmean(constants) if constants else None,
        trained_parameters=max(row.trained_parameters for row in rows),
        trained_share=max(row.trained_share for row in rows),
        seconds=fmean(row.seconds for row in rows),
        data=max((row.data for row in rows), key=DATA_ORDER.index),
    )


def _check_comparable(rows: Sequence[Result]) -> None:
    where = f"the results of '{contender(rows[0])}' on '{rows[0].target}'"
    for name in ("backbone", "metric"):
        found = sorted({str(getattr(row, name)) for row in rows})
        if len(found) > 1:
            raise ArtifactError(f"{where} mix {' and '.join(found)}; summarise one {name} at a time")
    seeds = [row.seed for row in rows]
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise ArtifactError(
            f"{where} hold seed {twice[0]} under several studies or settings, which cannot be averaged; "
            "summarise one study at a time, or keep the lines of one settings_hash"
        )


def standard_error_of(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1) over √n, or None for one value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def contender(result: Result) -> str:
    """Return a method's name with its variant: what is one column of a table.

    Names of this form are what `paired_difference` and the tables take.
    """
    return f"{result.method}[{result.variant}]" if result.variant else result.method


def method_and_variant(name: str) -> tuple[str, str]:
    """Undo `contender`.

    >>> method_and_variant("bmtpt[particles=7]"), method_and_variant("pt")
    (('bmtpt', 'particles=7'), ('pt', ''))
    """
    method, _, variant = name.partition("[")
    return method, variant.removesuffix("]")


def has_variants(cells: Iterable[Cell]) -> bool:
    """Tell whether any cell is of a variant."""
    return any(method_and_variant(cell.method)[1] for cell in cells)


def options_of(variant: str) -> dict[str, str]:
    """Return what a variant sets.

    >>> options_of("particles=7,kernel=rbf"), options_of("")
    ({'particles': '7', 'kernel': 'rbf'}, {})
    """
    return dict(part.split("=", 1) for part in variant.split(",") if "=" in part)


def display_name(name: str) -> str:
    """Return the printed name of a method, and of its variant.

    >>> display_name("bmtpt[particles=7]")
    'BMTPT (particles=7)'
    """
    method, variant = method_and_variant(name)
    shown = DISPLAY_NAMES.get(method, method)
    return f"{shown} ({variant})" if variant else shown


def methods_of(cells: Iterable[Cell]) -> list[str]:
    """Return the methods in column order: as in `DISPLAY_NAMES`, then unknown ones; variants as they appear."""
    found = dict.fromkeys(cell.method for cell in cells)
    order = {name: number for number, name in enumerate(DISPLAY_NAMES)}
    return sorted(found, key=lambda name: order.get(method_and_variant(name)[0], len(order)))


def judged_of(names: Iterable[str]) -> str:
    """Return the method that is compared with the others unless one is named: SVGD where there are no prompts."""
    methods = {method_and_variant(name)[0] for name in names}
    return "svgd" if "svgd" in methods and "bmtpt" not in methods else "bmtpt"


def pairs_to_compare(names: Sequence[str], method: str) -> list[tuple[str, str]]:
    """Return which contenders are compared with which: a method, or else each of its variants, with every other method.

    Of another method's variants those count that set what both set to the same value, or all if there are none.
    Variants that stand alone are compared with the one that sets the least of what they set, to the same values (a
    study's own settings, in each dimension); those that have none such, with the first that has none.
    """
    judged = [name for name in names if name == method] or [n for n in names if method_and_variant(n)[0] == method]
    rivals: dict[str, list[str]] = {}
    for name in names:
        if name not in judged:
            rivals.setdefault(method_and_variant(name)[0], []).append(name)
    if not rivals:
        plain = {name: _plainest(name, judged) for name in judged}
        first = next(iter(plain.values()), "")
        return [(name, first if plain[name] == name else plain[name]) for name in judged if name != first]
    return [
        (left, right)
        for left in judged
        for variants in rivals.values()
        for right in [name for name in variants if _agree(left, name)] or variants
    ]


def _plainest(name: str, variants: Sequence[str]) -> str:
    """Return the variant, maybe the same, that sets least and nothing but what this one sets, to the same values."""
    options = {each: options_of(method_and_variant(each)[1]) for each in variants}
    within = [each for each in variants if options[each].items() <= options[name].items()]
    return min(within, key=lambda each: len(options[each]))


def _agree(left: str, right: str) -> bool:
    """Tell whether two variants set no option to different values."""
    own, other = (options_of(method_and_variant(name)[1]) for name in (left, right))
    return all(own[option] == other[option] for option in own.keys() & other.keys())


def by_measure(results: Iterable[Result]) -> list[list[Result]]:
    """Split results into what can stand in one table: all scores first, then each measure (`MEASURES`) alone.

    Measures that are not a target's headline come along where they are in `SECOND_TABLES` and their method is varied.
    """
    rows = list(results)
    varied = {(row.study, row.method) for row in rows if row.variant}
    groups: dict[str, list[Result]] = {}
    for row in rows:
        if row.primary or ((row.study, row.method) in varied and row.metric in SECOND_TABLES):
            kind = row.metric if row.metric in MEASURES else ""
            groups.setdefault(kind, []).append(row.model_copy(update={"primary": True}))
    return [groups[kind] for kind in sorted(groups, key=bool)]


# Paired differences


@dataclass(frozen=True, slots=True)
class Interval:
    """Differences per seed, their mean and its 95 % interval (None for one seed)."""

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Method minus baseline, in points of the metric.

    Attributes:
        rows: One interval per target and shots on which both have a seed in common.
        overall: Over all these rows, or None if no seed is common to all of them.
    """

    method: str
    baseline: str
    rows: dict[Row, Interval]
    overall: Interval | None


def paired_difference(results: Sequence[Result], method: str, baseline: str) -> PairedDifference:
    """Compare two methods seed by seed.

    What is resampled is the seed (few-shot draw, initialisation, order of batches), never the target. Per
    target: Student's t over the differences of its n seeds. Overall: the differences are first averaged over
    targets within each seed, and Student's t is taken over the n seed means. The overall interval therefore
    speaks of these targets with other seeds and not of other targets.

    Raises:
        ArtifactError: One of the methods is not among the results.
    """
    cells = summarise(results)
    scores = {name: scores_of(cells, name) for name in (method, baseline)}
    rows: dict[Row, Interval] = {}
    for row, left in scores[method].items():
        right = scores[baseline].get(row, {})
        if seeds := sorted(left.keys() & right.keys()):
            rows[row] = _interval(seeds, [left[seed] - right[seed] for seed in seeds])
    return PairedDifference(method, baseline, rows, _over_targets(list(rows.values())))


def scores_of(cells: Sequence[Cell], method: str) -> dict[Row, dict[int, float]]:
    """Return the scores of one method by row and seed; an unknown name raises `ArtifactError`."""
    found = {cell.row: dict(zip(cell.seeds, cell.values, strict=True)) for cell in cells if cell.method == method}
    if not found:
        hint = nearest(method, [cell.method for cell in cells])
        raise ArtifactError(f"no results of the method '{method}'; {hint}")
    return found


def _over_targets(rows: Sequence[Interval]) -> Interval | None:
    if not rows:
        return None
    seeds = sorted(set.intersection(*(set(row.seeds) for row in rows)))
    if not seeds:
        return None
    return _interval(seeds, [fmean(row.differences[row.seeds.index(s)] for row in rows) for s in seeds])


def _interval(seeds: Sequence[int], differences: Sequence[float]) -> Interval:
    mean, error = fmean(differences), standard_error_of(differences)
    if error is None:
        return Interval(tuple(seeds), tuple(differences), mean, None, None)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(seeds) - 1)) * error
    return Interval(tuple(seeds), tuple(differences), mean, mean - half, mean + half)
