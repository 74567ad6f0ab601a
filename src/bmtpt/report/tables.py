"""Score tables for the terminal and for Markdown, and the sentence under them.

Nothing heavy is imported at the top, so `bmtpt compare` prints a table without loading torch or matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from bmtpt.report.summary import (
    DATA_ORDER,
    DISPLAY_NAMES,
    Cell,
    Interval,
    PairedDifference,
    Row,
    display_name,
    methods_of,
    paired_difference,
    scores_of,
    standard_error_of,
    summarise,
)
from bmtpt.results import Result

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = [
    "DISPLAY_NAMES",
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


class Entry(NamedTuple):
    """One cell of a printed table; ``best`` entries are bold."""

    text: str
    best: bool = False


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Header, rows and notes; the first three columns are words, the others numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()


WORD_COLUMNS = 3


def score_table(results: Sequence[Result], methods: Sequence[str] | None = None) -> ScoreTable:
    """Lay the scores out as target × shots by method.

    Columns: target, shots, data status, constant answer, then mean ± standard error per method; the best mean
    of each row is marked (all of them on a tie). The last row is the mean over targets and stands there only if
    there are several and every method has all of them.

    Raises:
        ArtifactError: As `summarise`; or a name in ``methods`` has no results.
    """
    cells = summarise(results)
    names = methods_of(cells) if methods is None else list(methods)
    for name in names:
        scores_of(cells, name)
    cells = [cell for cell in cells if cell.method in names]
    rows: dict[Row, dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, {})[cell.method] = cell
    body = [_score_row(row, by_method, names) for row, by_method in rows.items()]
    if len(rows) > 1 and all(len(by_method) == len(names) for by_method in rows.values()):
        body.append(_mean_row(list(rows.values()), names))
    header = ("target", "shots", "data", "constant answer", *map(display_name, names))
    return ScoreTable(header, tuple(body), tuple(_notes(rows)))


def _score_row(row: Row, cells: dict[str, Cell], names: Sequence[str]) -> tuple[Entry, ...]:
    first = next(iter(cells.values()))
    data = max((cell.data for cell in cells.values()), key=DATA_ORDER.index)
    scores = [(cells[name].mean, cells[name].standard_error) if name in cells else None for name in names]
    words = (*_row_words(row), Entry(data))
    return (*words, Entry(number(first.constant_answer)), *_score_entries(scores))


def _mean_row(rows: Sequence[dict[str, Cell]], names: Sequence[str]) -> tuple[Entry, ...]:
    constants = [next(iter(cells.values())).constant_answer for cells in rows]
    known = [value for value in constants if value is not None]
    constant = fmean(known) if len(known) == len(constants) else None
    scores = [_mean_over_targets([cells[name] for cells in rows]) for name in names]
    words = (Entry("mean over targets"), Entry(""), Entry(""))
    return (*words, Entry(number(constant)), *_score_entries(scores))


def _mean_over_targets(cells: Sequence[Cell]) -> tuple[float, float | None]:
    """Mean of the cells, with the standard error over seed means if every target has the same seeds."""
    mean = fmean(cell.mean for cell in cells)
    if len({cell.seeds for cell in cells}) > 1:
        return mean, None
    by_seed = [fmean(values) for values in zip(*(cell.values for cell in cells), strict=True)]
    return mean, standard_error_of(by_seed)


def _score_entries(scores: Sequence[tuple[float, float | None] | None]) -> list[Entry]:
    best = max((score[0] for score in scores if score), default=math.nan)
    entries = []
    for score in scores:
        if score is None:
            entries.append(Entry("–"))
            continue
        mean, error = score
        text = number(mean) if error is None else f"{number(mean)} ± {number(error)}"
        entries.append(Entry(text, best=_equal(mean, best)))
    return entries


def _equal(left: float, right: float) -> bool:
    return math.isclose(left, right, abs_tol=1e-9)  # means of the same scores may differ in the last bit


def number(value: float | None) -> str:
    """Return a score with one decimal and a true minus sign, or a dash for None.

    >>> number(-1.84), number(-0.01), number(None)
    ('−1.8', '0.0', '–')
    """
    if value is None:
        return "–"
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def _notes(rows: dict[Row, dict[str, Cell]]) -> list[str]:
    cells = [cell for by_method in rows.values() for cell in by_method.values()]
    counts = sorted({len(cell.seeds) for cell in cells})
    metrics: dict[str, dict[str, None]] = {}
    for cell in cells:
        metrics.setdefault(cell.metric, {})[cell.target] = None
    named = "; ".join(f"{metric} ({', '.join(targets)})" for metric, targets in metrics.items())
    seeds = _seeds(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    notes = [f"Mean{'' if counts[-1] == 1 else ' ± standard error'} over {seeds}, 0 to 100: {named}."]
    if weak := [_row_name(row) for row, by_method in rows.items() if _no_better_than_constant(by_method)]:
        notes.append(f"No method is above the constant answer on {', '.join(weak)}: these rows show nothing.")
    return notes


def _no_better_than_constant(cells: dict[str, Cell]) -> bool:
    constants = [cell.constant_answer for cell in cells.values() if cell.constant_answer is not None]
    return bool(constants) and max(cell.mean for cell in cells.values()) <= max(constants) + 1e-9


def _row_name(row: Row) -> str:
    return row[0] if row[1] is None else f"{row[0]} ({row[1]} shots)"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def to_markdown(table: ScoreTable) -> str:
    """Return the table as GitHub Markdown, the best of each row in bold, the notes below."""
    rule = ["---" if i < WORD_COLUMNS else "---:" for i in range(len(table.header))]
    rows = [[_markdown(name) for name in table.header], rule]
    rows += [[f"**{_markdown(e.text)}**" if e.best else _markdown(e.text) for e in row] for row in table.rows]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines + [part for note in table.notes for part in ("", _markdown(note))]) + "\n"


def _markdown(text: str) -> str:
    for mark in "\\|*<`":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


def to_rich(table: ScoreTable) -> RichTable:
    """Return the table for the terminal, the best of each row in bold, the notes as its caption."""
    from rich.table import Table
    from rich.text import Text

    # Text objects, because a task named "[red]" is a name and not markup.
    rich = Table(caption=Text("\n".join(table.notes)) if table.notes else None)
    for index, name in enumerate(table.header):
        rich.add_column(Text(name), justify="left" if index < WORD_COLUMNS else "right")
    for row in table.rows:
        rich.add_row(*(Text(entry.text, style="bold" if entry.best else "") for entry in row))
    return rich


def difference_table(results: Sequence[Result], method: str = "bmtpt") -> ScoreTable:
    """Lay out method minus every other method: one row per target and shots, then all of them together.

    Each entry is the paired difference over seeds with its 95 % interval (Student's t), in points of the metric.

    Raises:
        ArtifactError: As `summarise`; or the method has no results.
    """
    cells = summarise(results)
    scores_of(cells, method)
    rivals = [name for name in methods_of(cells) if name != method]
    found = [paired_difference(results, method, name) for name in rivals]
    rows = list(dict.fromkeys(cell.row for cell in cells if cell.method == method))
    body = [(*_row_words(row), Entry("points"), *_interval_entries(found, row)) for row in rows]
    overall = [Entry(_interval(each.overall)) for each in found]
    header = ("target", "shots", "unit", *(f"{display_name(method)} − {display_name(name)}" for name in rivals))
    return ScoreTable(header, (*body, (Entry("all together"), Entry(""), Entry("points"), *overall)))


def _row_words(row: Row) -> tuple[Entry, Entry]:
    return Entry(row[0]), Entry("all" if row[1] is None else str(row[1]))


def _interval_entries(found: Sequence[PairedDifference], row: Row) -> list[Entry]:
    return [Entry(_interval(each.rows.get(row))) for each in found]


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    if interval.low is None or interval.high is None:
        return number(interval.mean)
    return f"{number(interval.mean)} [{number(interval.low)}, {number(interval.high)}]"


# The sentence


def verdict(results: Sequence[Result], method: str = "bmtpt", baselines: Sequence[str] | None = None) -> str:
    """Compare a method with its baselines in one sentence.

    Only rows (target and shots) that all of them have are counted, a tie is not counted as best, and the
    difference is taken against the baseline with the highest mean, which is the strictest choice.

    Args:
        results: Results of one backbone.
        method: The method that is judged.
        baselines: Methods to compare with; those without results are left out. None: every other method.

    Raises:
        ArtifactError: As `summarise`.
    """
    cells = summarise(results)
    found = methods_of(cells)
    rivals = [name for name in (found if baselines is None else baselines) if name in found and name != method]
    if method not in found:
        return f"{display_name(method)} is not among these results."
    if not rivals:
        return f"{display_name(method)} stands alone in these results, so nothing can be said about winning."
    rows = _common_rows(cells, [method, *rivals])
    if not rows:
        return f"{display_name(method)} and its baselines have no target in common, so they cannot be compared."
    return _sentence(results, rows, method, rivals)


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
