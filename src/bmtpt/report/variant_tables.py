"""Tables with one row per method (and variant) and one column per target: for varied settings, and for many methods."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from bmtpt.report.entries import (
    interval_text,
    mean_over_targets,
    mean_seconds,
    notes,
    row_name,
    score_entries,
    trained_numbers,
    unit,
)
from bmtpt.report.layout import Entry, ScoreTable, number
from bmtpt.report.summary import (
    MEASURES,
    Cell,
    PairedDifference,
    Row,
    display_name,
    has_variants,
    method_and_variant,
    methods_of,
    paired_difference,
    pairs_to_compare,
    scores_of,
)
from bmtpt.results import Result

ALL = "all together"
TRAINED = "trained numbers"
CHANCE = "{0} differences are shown at once: of these about one in 20 would have an interval without 0 by chance alone."
MOST_COLUMNS = 7
"""More methods than these do not fit beside each other in a terminal or on a page."""


def is_tall(cells: Sequence[Cell]) -> bool:
    """Tell whether methods are rows: with variants, or where there are too many for columns."""
    return has_variants(cells) or len(methods_of(cells)) > MOST_COLUMNS


def tall_score_table(cells: Sequence[Cell], names: Sequence[str]) -> ScoreTable:
    """Lay the scores out as method and variant by target and shots; the best of each column is marked.

    Behind the targets comes their mean; it stands there only if there are several and all have all of them. Scores
    have their costs at the end: trained numbers (without variants in the second column) and seconds.
    """
    rows: dict[Row, dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, {})[cell.method] = cell
    columns = [_column(names, by_method) for by_method in rows.values()]
    header = [row_name(row) for row in rows]
    if len(rows) > 1 and all(len(by_method) == len(names) for by_method in rows.values()):
        means = [mean_over_targets([by_method[name] for by_method in rows.values()]) for name in names]
        columns.append([*score_entries(means, cells[0].metric), _constant(list(rows.values()))])
        header.append("mean over targets")
    varied = has_variants(cells)
    second = "variant" if varied else TRAINED
    words = [_words(name, cells, varied) for name in names] + [(Entry("constant answer"), Entry(""), Entry(""))]
    costs = _costs(cells, names, varied)
    body = [(*three, *entries) for three, *entries in zip(words, *columns, *costs.values(), strict=True)]
    shown = body if any(entry.text != "–" for entry in body[-1][3:]) else body[:-1]
    return ScoreTable(("method", second, "data", *header, *costs), tuple(shown), tuple(notes(rows)))


def _column(names: Sequence[str], by_method: dict[str, Cell]) -> list[Entry]:
    scores = [(by_method[name].mean, by_method[name].standard_error) if name in by_method else None for name in names]
    metric = next(iter(by_method.values())).metric
    return [*score_entries(scores, metric), _constant([by_method])]


def _constant(rows: Sequence[dict[str, Cell]]) -> Entry:
    found = [next(iter(by_method.values())).constant_answer for by_method in rows]
    known = [value for value in found if value is not None]
    return Entry(number(fmean(known) if len(known) == len(found) else None))


def _costs(cells: Sequence[Cell], names: Sequence[str], varied: bool) -> dict[str, list[Entry]]:
    """Return the last columns of a table of scores by their headers; a measure has none."""
    if cells[0].metric in MEASURES:
        return {}
    own = [[cell for cell in cells if cell.method == name] for name in names]
    trained = {TRAINED: [*map(trained_numbers, own), Entry("–")]} if varied else {}
    return trained | {"seconds": [*map(mean_seconds, own), Entry("–")]}


def _words(name: str, cells: Sequence[Cell], varied: bool) -> tuple[Entry, Entry, Entry]:
    method, variant = method_and_variant(name)
    own = [cell for cell in cells if cell.method == name]
    second = Entry(variant) if varied else trained_numbers(own)
    return Entry(display_name(method)), second, Entry(", ".join(dict.fromkeys(cell.data for cell in own)))


def tall_difference_table(results: Sequence[Result], cells: Sequence[Cell], method: str) -> ScoreTable:
    """Lay out the pairs that are compared, by target; the last column is all targets together, if there are several.

    Raises:
        ArtifactError: As `summarise`; or the method has no results.
    """
    names = methods_of(cells)
    if method not in map(_method, names):
        scores_of(cells, method)
    pairs = pairs_to_compare(names, method)
    found = [paired_difference(results, left, right) for left, right in pairs]
    rows = list(dict.fromkeys(row for each in found for row in each.rows))
    several = [ALL] if len(rows) > 1 else []
    header = ("method", "minus", "unit", *map(row_name, rows), *several)
    body = [_difference_row(each, rows, cells[0].metric)[: len(header)] for each in found]
    count = len(found) * len(rows)
    return ScoreTable(header, tuple(body), (CHANCE.format(count),) if count > 1 else ())


def _method(name: str) -> str:
    return method_and_variant(name)[0]


def _difference_row(difference: PairedDifference, rows: Sequence[Row], metric: str) -> tuple[Entry, ...]:
    words = Entry(display_name(difference.method)), Entry(display_name(difference.baseline)), unit(metric)
    intervals = [*(difference.rows.get(row) for row in rows), difference.overall]
    return (*words, *(Entry(interval_text(each, metric)) for each in intervals))
