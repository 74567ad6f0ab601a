"""Scores over independent repetitions, paired differences with their intervals, and the verdict in one sentence.

A repetition (`unit`) is a source stage if the lines name one, else a seed. Runs on one source stage share its
posterior, so they are averaged first, and standard errors and Student's t are taken over the source stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd
from scipy import stats

from bmtpt.errors import ArtifactError, nearest
from bmtpt.report.names import (
    LOSSES,
    MEASURES,
    direction,
    display_name,
    display_names,
    figure,
    method_and_variant,
    options_of,
)

CLOSE = 1e-9
"""Means of the same numbers may differ in the last bits."""

ENOUGH_STAGES = 5
"""Source stages that a finding needs: Student's t over fewer is wide, and now and then narrow by chance."""


def scores(lines: pd.DataFrame) -> pd.DataFrame:
    """Summarise the lines of one table: one row per target (with shots) and contender.

    Returns:
        Columns `row`, `contender`, `target`, `shots`, `metric`; `mean` and `error` (standard error, NaN for one unit)
        over `units`, which are source stages if `staged` and else seeds; `runs`; `constant` (mean score of the best
        constant answer), `trained` (largest count), `share` of the backbone, `seconds`, `kept` bytes and
        seconds of `answering` a row (means), `data` (the least official status), and `moved` (share of runs); NaN is
        what no line says.
    """
    cell = ["row", "contender"]
    units = lines.groupby([*cell, "unit"], sort=False)["value"].mean().groupby(cell, sort=False)
    found = lines.groupby(cell, sort=False).agg(
        target=("target", "first"),
        shots=("shots", "first"),
        metric=("metric", "first"),
        staged=("source_seed", lambda seeds: seeds.notna().any()),
        runs=("seed", "size"),
        constant=("constant_answer", "mean"),
        trained=("trained_parameters", "max"),
        share=("trained_share", "max"),
        seconds=("seconds", "mean"),
        kept=("kept_bytes", "mean"),
        answering=("predict_seconds", "mean"),
        data=("data", "max"),
        moved=("moved", "mean"),
    )
    return found.assign(mean=units.mean(), error=units.sem(), units=units.size()).reset_index()


def over_targets(lines: pd.DataFrame) -> pd.DataFrame:
    """Return the `mean` over targets per contender, and its `error` if all of its targets have the same units."""
    by_unit = lines.pivot_table(index=["contender", "unit"], columns="row", values="value")
    by_unit = by_unit[by_unit.notna().any(axis=1)]
    same = by_unit.notna().all(axis=1).groupby("contender").all()
    over_units = by_unit.mean(axis=1).groupby("contender")
    mean = by_unit.groupby("contender").mean().mean(axis=1)
    return pd.DataFrame({"mean": mean, "error": over_units.sem().where(same)})


class Interval(NamedTuple):
    """A mean over n units and its 95 % interval by Student's t (NaN for one unit)."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: pd.Series) -> Interval:
    """Return the mean of independent values with its 95 % interval by Student's t."""
    n, mean = len(values), float(values.mean())
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(values)) if n > 1 else float("nan")
    return Interval(mean, mean - half, mean + half, n)


def paired(lines: pd.DataFrame, method: str, baseline: str) -> pd.DataFrame:
    """Return the differences method − baseline [unit, row], NaN where they share no run.

    Runs are paired by seed, and by source stage if both have one; then runs on one source stage are averaged.

    Raises:
        ArtifactError: One of the two has no results.
    """
    for name in (method, baseline):
        check_known(lines, name)
    left, right = (lines[lines.contender == name] for name in (method, baseline))
    pairs = left.merge(right, on=["row", "seed"], suffixes=("", "_other"))
    pairs = pairs[(pairs.source_seed - pairs.source_seed_other).fillna(0) == 0]
    unit = pairs.source_seed.fillna(pairs.source_seed_other).fillna(pairs.seed).rename("unit")
    by_unit = (pairs.value - pairs.value_other).groupby([unit, pairs.row]).mean().unstack("row")
    return by_unit[list(dict.fromkeys(pairs.row))]


def check_known(lines: pd.DataFrame, name: str) -> None:
    """Raise `ArtifactError` unless a contender has results, with its variants, or the nearest names if it has none."""
    if name not in set(lines.contender):
        variants = {each for each in lines.contender if method_and_variant(each)[0] == name}
        raise ArtifactError(f"no results of the method '{name}'; {nearest(name, variants or lines.contender)}")


def together(differences: pd.DataFrame) -> Interval | None:
    """Return the interval over units that have every row, averaged over rows first; None if there is no such unit.

    The rows are fixed: it speaks of these targets with other seeds or source stages, not of other targets.
    """
    complete = differences.dropna()
    return None if complete.empty else interval(complete.mean(axis=1))


# What is compared with what


def contenders(lines: pd.DataFrame) -> list[str]:
    """Return the contenders in the order of `display_names`, then unknown ones; variants as they appear."""
    order = {name: number for number, name in enumerate(display_names())}
    found = dict.fromkeys(lines.contender)
    return sorted(found, key=lambda name: order.get(method_and_variant(name)[0], len(order)))


def judged_of(names: Iterable[str]) -> str:
    """Return the method that is compared with the others by default: BMTPT, or SVGD in studies without prompts."""
    methods = {method_and_variant(name)[0] for name in names}
    return "svgd" if "svgd" in methods and "bmtpt" not in methods else "bmtpt"


def pairs_to_compare(names: Sequence[str], method: str) -> list[tuple[str, str]]:
    """Return the pairs of a difference table: a method, or each of its variants, with every other method.

    If another method has variants, those count that agree with this one on every option that both set, or all if none
    agrees. Variants without another method are compared with the plainest variant that sets nothing else (a study's own
    settings), or else with the first.
    """
    judged = [name for name in names if name == method] or [n for n in names if method_and_variant(n)[0] == method]
    rivals: dict[str, list[str]] = {}
    for name in names:
        if name not in judged:
            rivals.setdefault(method_and_variant(name)[0], []).append(name)
    options = {name: options_of(method_and_variant(name)[1]) for name in names}
    if not rivals:
        plain = {}
        for name in judged:  # the variant, possibly the same, that sets the fewest options, all to the same values
            within = [each for each in judged if options[each].items() <= options[name].items()]
            plain[name] = min(within, key=lambda each: len(options[each]))
        first = next(iter(plain.values()), "")
        return [(name, first if plain[name] == name else plain[name]) for name in judged if name != first]
    pairs = []
    for left in judged:
        for variants in rivals.values():
            agreeing = [
                name
                for name in variants
                if all(
                    options[left][each] == options[name][each] for each in options[left].keys() & options[name].keys()
                )
            ]
            pairs += [(left, right) for right in agreeing or variants]
    return pairs


# The sentence


def verdict(lines: pd.DataFrame, method: str = "bmtpt") -> str:
    """Compare a method with all others in one sentence.

    Only targets that all of them have are counted, a tie does not count as best, and the difference is taken against
    the one with the best mean, which is the strictest choice. Of several variants none is judged.
    """
    metric, names = lines.metric.iloc[0], contenders(lines)
    if direction(metric) == 0:
        return f"{metric}: {MEASURES[metric]}; it does not rank methods, so no winner is declared."
    variants = [name for name in names if method_and_variant(name)[0] == method]
    if len(variants) > 1:
        return (
            f"{display_name(method)} appears here in {len(variants)} variants, and the best of them was not named "
            "beforehand, so no winner is declared: to choose after the fact would count luck as gain."
        )
    method = variants[0] if variants else method
    rivals = [name for name in names if name != method]
    if method not in names:
        return f"{display_name(method)} is not among these results."
    if not rivals:
        return f"{display_name(method)} is the only method in these results, so nothing can be said about winning."
    means = scores(lines).pivot(index="row", columns="contender", values="mean").dropna()
    if means.empty:
        return f"{display_name(method)} and the others have no target in common, so they cannot be compared."
    return _sentence(lines[lines.row.isin(means.index)], means, method, rivals)


def _sentence(lines: pd.DataFrame, means: pd.DataFrame, method: str, rivals: Sequence[str]) -> str:
    metric = lines.metric.iloc[0]
    sign = direction(metric)
    gain = sign * means  # more is better
    strongest = gain[rivals].mean().idxmax()
    wins = int((gain[method] > gain[rivals].max(axis=1) + CLOSE).sum())
    found = together(paired(lines, method, strongest))
    difference = found.mean if found else means[method].mean() - means[strongest].mean()
    what = "score" if metric not in LOSSES else metric
    rows, targets = lines.row.nunique(), lines.target.nunique()
    of = f"{targets} targets" if rows == targets else f"{rows} rows ({targets} targets)"
    return (
        f"{display_name(method)} is best on {wins} of {'1 target' if rows == 1 else of}; its "
        f"{f'mean {what} over targets' if len(means) > 1 else what} is {figure(means[method].mean(), metric)} against "
        f"{figure(means[strongest].mean(), metric)} for {display_name(strongest)}"
        f"{', the strongest of the others' if len(rivals) > 1 else ''}"
        f" ({_evidence(found, difference, lines)}): {_conclusion(found, sign * difference, sign, few_stages(lines))}."
    )


def _evidence(found: Interval | None, difference: float, lines: pd.DataFrame) -> str:
    metric, unit = lines.metric.iloc[0], unit_name(lines)
    value = figure(difference, metric)
    if found is None:
        return f"difference {value}; no {unit} has every target for both"
    if found.n == 1:
        return f"paired difference {value}, no interval from one {unit}"
    bounds = f"{figure(found.low, metric)} to {figure(found.high, metric)}"
    return f"paired difference {value}, 95 % interval {bounds}, {found.n} {unit}s"


def unit_name(lines: pd.DataFrame) -> str:
    """Return what intervals are taken over: "source stage" if any line names one, else "seed"."""
    return "source stage" if lines.source_seed.notna().any() else "seed"


def few_stages(lines: pd.DataFrame) -> bool:
    """Return whether lines name fewer source stages than a finding needs."""
    return 0 < int(lines.source_seed.nunique()) < ENOUGH_STAGES


def _conclusion(found: Interval | None, gain: float, sign: int, few: bool) -> str:
    if few:
        return f"with fewer than {ENOUGH_STAGES} source stages this is no finding"
    low, high = (found.low, found.high) if found else (float("nan"), float("nan"))
    worst, best = sorted((sign * low, sign * high))
    if worst > 0:
        return "it wins"
    if best < 0:
        return "it does not win and is clearly worse"
    if gain <= CLOSE:
        return "it does not win"
    if low != low:
        return "it is ahead, which without an interval is no proof of a win"
    return "it is ahead, but the interval includes 0, so this is not a clear win"
