"""Score tables for the terminal and for Markdown, and the sentence under them.

Nothing heavy is imported at the top, so `bmtpt table` prints a table without loading torch or matplotlib.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import fmean

from bmtpt.report.entries import (
    interval_text,
    mean_over_targets,
    mean_seconds,
    notes,
    row_words,
    score_entries,
    trained_numbers,
    unit,
)
from bmtpt.report.layout import WORD_COLUMNS, Entry, ScoreTable, number, to_markdown, to_rich
from bmtpt.report.summary import (
    DISPLAY_NAMES,
    MEASURES,
    Cell,
    Interval,
    PairedDifference,
    Row,
    display_name,
    method_and_variant,
    methods_of,
    paired_difference,
    scores_of,
    summarise,
)
from bmtpt.report.variant_tables import is_tall, tall_difference_table, tall_score_table
from bmtpt.results import Result
from bmtpt.types import DATA_ORDER

__all__ = [
    "DISPLAY_NAMES",
    "WORD_COLUMNS",
    "Cell",
    "Entry",
    "Interval",
    "PairedDifference",
    "ScoreTable",
    "difference_table",
    "display_name",
    "number",
    "paired_difference",
    "score_table",
    "summarise",
    "to_markdown",
    "to_rich",
    "verdict",
]


def score_table(results: Sequence[Result]) -> ScoreTable:
    """Lay the scores out as target × shots by method; with variants or many methods, as method by target.

    Columns: target, shots, data status, constant answer, then mean ± standard error per method; the best mean
    of each row is marked (all of them on a tie). Below stand the mean over targets, if there are several and every
    method has all of them, and what each method costs, if these are scores.

    Raises:
        ArtifactError: As `summarise`.
    """
    cells = summarise(results)
    names = methods_of(cells)
    if is_tall(cells):
        return tall_score_table(cells, names)
    rows: dict[Row, dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, {})[cell.method] = cell
    body = [_score_row(row, by_method, names) for row, by_method in rows.items()]
    if len(rows) > 1 and all(len(by_method) == len(names) for by_method in rows.values()):
        body.append(_mean_row(list(rows.values()), names))
    body += _cost_rows(cells, names)
    header = ("target", "shots", "data", "constant answer", *map(display_name, names))
    return ScoreTable(header, tuple(body), tuple(notes(rows)))


def _score_row(row: Row, cells: dict[str, Cell], names: Sequence[str]) -> tuple[Entry, ...]:
    first = next(iter(cells.values()))
    data = max((cell.data for cell in cells.values()), key=DATA_ORDER.index)
    scores = [(cells[name].mean, cells[name].standard_error) if name in cells else None for name in names]
    words = (*row_words(row), Entry(data))
    return (*words, Entry(number(first.constant_answer)), *score_entries(scores, first.metric))


def _mean_row(rows: Sequence[dict[str, Cell]], names: Sequence[str]) -> tuple[Entry, ...]:
    constants = [next(iter(cells.values())).constant_answer for cells in rows]
    known = [value for value in constants if value is not None]
    constant = fmean(known) if len(known) == len(constants) else None
    scores = [mean_over_targets([cells[name] for cells in rows]) for name in names]
    words = (Entry("mean over targets"), Entry(""), Entry(""))
    return (*words, Entry(number(constant)), *score_entries(scores, next(iter(rows[0].values())).metric))


def _cost_rows(cells: Sequence[Cell], names: Sequence[str]) -> list[tuple[Entry, ...]]:
    """Return the last rows of a table of scores: trained numbers and mean seconds per method; a measure has none."""
    if cells[0].metric in MEASURES:
        return []
    own = [[cell for cell in cells if cell.method == name] for name in names]
    rows = {"trained numbers": map(trained_numbers, own), "seconds": map(mean_seconds, own)}
    return [(Entry(name), Entry(""), Entry(""), Entry("–"), *entries) for name, entries in rows.items()]


def difference_table(results: Sequence[Result], method: str = "bmtpt") -> ScoreTable:
    """Lay out method minus every other method: one row per target and shots, then all of them together.

    With variants or many methods there is one row per pair (see `pairs_to_compare`) and a column per target. Each
    entry is the paired difference over seeds with its 95 % interval (Student's t), in points of a score or in the
    measure's own unit.

    Raises:
        ArtifactError: As `summarise`; or the method has no results.
    """
    cells = summarise(results)
    if is_tall(cells):
        return tall_difference_table(results, cells, method)
    scores_of(cells, method)
    rivals = [name for name in methods_of(cells) if name != method]
    found = [paired_difference(results, method, name) for name in rivals]
    metric = cells[0].metric
    rows = list(dict.fromkeys(cell.row for cell in cells if cell.method == method))
    body = [
        (*row_words(row), unit(metric), *(Entry(interval_text(each.rows.get(row), metric)) for each in found))
        for row in rows
    ]
    overall = [Entry(interval_text(each.overall, metric)) for each in found]
    header = ("target", "shots", "unit", *(f"{display_name(method)} − {display_name(name)}" for name in rivals))
    return ScoreTable(header, (*body, (Entry("all together"), Entry(""), unit(metric), *overall)))


# The sentence


def verdict(results: Sequence[Result], method: str = "bmtpt") -> str:
    """Compare a method with all others in one sentence.

    Only rows (target and shots) that all of them have are counted, a tie is not counted as best, and the
    difference is taken against the one with the highest mean, which is the strictest choice.

    Args:
        results: Results of one backbone.
        method: The method that is judged; of several variants none is.

    Raises:
        ArtifactError: As `summarise`.
    """
    cells = summarise(results)
    found = methods_of(cells)
    if cells[0].metric in MEASURES:
        return f"{cells[0].metric}: {MEASURES[cells[0].metric]}; it is no score, so nobody wins."
    variants = [name for name in found if method_and_variant(name)[0] == method]
    if len(variants) > 1:
        return _no_verdict(method, variants)
    method = variants[0] if variants else method
    if method not in found:
        return f"{display_name(method)} is not among these results."
    rivals = [name for name in found if name != method]
    if not rivals:
        return f"{display_name(method)} stands alone in these results, so nothing can be said about winning."
    rows = _common_rows(cells, [method, *rivals])
    if not rows:
        return f"{display_name(method)} and the others have no target in common, so they cannot be compared."
    return _sentence(results, rows, method, rivals)


def _no_verdict(method: str, variants: Sequence[str]) -> str:
    return (
        f"{display_name(method)} stands here in {len(variants)} variants, and the best of them was not named "
        "beforehand, so no winner is declared: to choose after the fact would count luck as gain."
    )


def _common_rows(cells: Sequence[Cell], names: Sequence[str]) -> dict[Row, dict[str, Cell]]:
    rows: dict[Row, dict[str, Cell]] = {}
    for cell in cells:
        if cell.method in names:
            rows.setdefault(cell.row, {})[cell.method] = cell
    return {row: by_method for row, by_method in rows.items() if len(by_method) == len(names)}


def _sentence(results: Sequence[Result], rows: dict[Row, dict[str, Cell]], method: str, rivals: Sequence[str]) -> str:
    means = {name: fmean(cells[name].mean for cells in rows.values()) for name in (method, *rivals)}
    strongest = max(rivals, key=means.__getitem__)
    wins = sum(cells[method].mean > max(cells[name].mean for name in rivals) + 1e-9 for cells in rows.values())
    shared = [result for result in results if (result.target, result.shots) in rows]
    overall = paired_difference(shared, method, strongest).overall
    difference = means[method] - means[strongest] if overall is None else overall.mean
    return (
        f"{display_name(method)} is best on {wins} of {_targets(rows)}; its "
        f"{'mean over targets' if len(rows) > 1 else 'score'} is {number(means[method])} against "
        f"{number(means[strongest])} for {display_name(strongest)}"
        f"{', the strongest of the others' if len(rivals) > 1 else ''}"
        f" ({_evidence(overall, difference)}): {_conclusion(overall, difference)}."
    )


def _targets(rows: Collection[Row]) -> str:
    if len(rows) == 1:
        return "1 target"
    distinct = len({target for target, _ in rows})
    return f"{distinct} targets" if distinct == len(rows) else f"{len(rows)} rows ({distinct} targets)"


def _evidence(overall: Interval | None, difference: float) -> str:
    if overall is None:
        return f"difference {number(difference)}, without a seed that both have on every target"
    if overall.low is None:
        return f"paired difference {number(difference)}, no interval from one seed"
    bounds = f"{number(overall.low)} to {number(overall.high)}"
    return f"paired difference {number(difference)}, 95 % interval {bounds}, {len(overall.seeds)} seeds"


def _conclusion(overall: Interval | None, difference: float) -> str:
    low, high = (overall.low, overall.high) if overall else (None, None)
    if low is not None and low > 0:
        return "it wins"
    if high is not None and high < 0:
        return "it does not win, it is clearly behind"
    if difference <= 1e-9:
        return "it does not win"
    if low is None:
        return "it is ahead, which without an interval is no proof of a win"
    return "it is ahead, but the interval includes 0, so this is no clear win"
