"""Tables that fit: no line is wider than the terminal, no word is broken and nothing is lost."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from bmtpt.report.lines import by_measure, frame
from bmtpt.report.statistics import contenders, judged_of
from bmtpt.report.table import Best, Table
from bmtpt.report.tables import difference_table, published_table, score_table
from bmtpt.report.terminal import BREAK, fitted, folded
from bmtpt.results import read_results

RESULTS = Path(__file__).parents[2] / "studies" / "results"
WIDTHS = (80, 100, 120, 200)
QUICKSTART = """\
                                             subject  prompts
method                                    (16 shots)    moved   trained numbers
───────────────────────────────────────────────────────────────────────────────
plain prompt tuning                       77.9 ± 0.6    100 %  10,772 (0.014 %)
plain prompt tuning (readout, 64 texts)   77.9 ± 0.6    100 %  13,338 (0.017 %)
plain prompt tuning (untouched)           31.0 ± 1.5      0 %                 0
plain prompt tuning (untouched, readout,  72.7 ± 2.0      0 %  2,566 (0.0033 %)
  64 texts)
BMTPT                                           73.3    100 %  10,772 (0.014 %)
BMTPT (readout, 64 texts)                       75.8    100 %  13,338 (0.017 %)
constant answer                                 28.7        –                 –
data status                                      cut        –                 –

                                                                   wall  ms per
method                                              bytes kept  seconds  answer
───────────────────────────────────────────────────────────────────────────────
plain prompt tuning                                     40,960     20.3    17.7
plain prompt tuning (readout, 64 texts)                 88,156     21.8      17
plain prompt tuning (untouched)                         40,960        0      18
plain prompt tuning (untouched, readout, 64 texts)      88,156      1.4    17.9
BMTPT                                                   40,960     16.1    16.2
BMTPT (readout, 64 texts)                               88,156     17.3    15.7
"""


def parts(table: Table, width: int) -> list[list[str]]:
    """The lines of each part, without spaces at their ends."""
    printed = []
    for part in fitted(table, width):
        console = Console(width=width, file=io.StringIO())
        console.print(part, crop=False)
        printed.append([line.rstrip() for line in console.file.getvalue().splitlines()])  # type: ignore[attr-defined]
    return printed


def require_fitting(table: Table, width: int) -> None:
    printed = parts(table, width)
    lines = [line for part in printed for line in part]
    assert max(map(cell_len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    for text in (*table.header, *(text for row in table.rows for text in row)):
        assert set(text.split()) <= words | {"–"}
    numbers = [text for row in table.rows for text in row[table.words :] if text not in ("", "–")]
    shown = "\n".join(lines)
    assert all(shown.count(text) >= numbers.count(text) for text in set(numbers))
    for part in printed:
        (rule,) = (number for number, line in enumerate(part) if set(line) == {"─"})
        rows = [line for line in part[rule + 1 :] if not line.startswith("  ")]
        names = [table.rows[i][0].split()[0] for i in range(len(table.rows))]
        assert [line.split()[0] for line in rows] == names or part is not printed[0]


@pytest.fixture(scope="module", params=["quickstart", "wording", "paper-fewshot", "few-labels", "gaussian", "start"])
def tables(request) -> list[Table]:
    groups = by_measure(frame(read_results(RESULTS / f"{request.param}.jsonl")))
    found = [score_table(group) for group in groups]
    if request.param == "paper-fewshot":
        found.append(published_table(groups[0]))
    if request.param != "wording":  # it has one method
        found.append(difference_table(groups[0], judged_of(contenders(groups[0]))))
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_of_the_committed_results_fit_every_terminal_whole(tables, width):
    for table in tables:
        require_fitting(table, width)


WORD = st.text("abcdefgxyz(),=", min_size=1, max_size=18)
WIDE = st.sampled_from(["多任务提示", "M = 5", "64 texts", "A ∘ uvᵀ"])
NAME = st.lists(WORD | WIDE, min_size=1, max_size=9).map(" ".join)
NUMBER = st.floats(-1e6, 1e6).map(lambda value: f"{value:,.1f}") | st.sampled_from(["–", "77.9 ± 0.6 [1.2, 3.4] ▲"])


@st.composite
def made_up(draw: st.DrawFn) -> Table:
    columns, rows = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    header = draw(st.lists(NAME, min_size=columns + 1, max_size=columns + 1))
    body = [(draw(NAME), *(draw(NUMBER) for _ in range(columns))) for _ in range(rows)]
    return Table(tuple(header), tuple(body))


@settings(max_examples=30, deadline=None)
@given(made_up(), st.sampled_from(WIDTHS))
def test_any_table_fits_whole(table, width):
    require_fitting(table, width)


@given(NAME, st.integers(1, 60))
def test_folded_text_has_the_same_words_and_breaks_only_where_it_must(text, width):
    lines = folded(text, width, indent="  ").split("\n")
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    for line in lines:
        assert cell_len(line) <= width or not BREAK.search(line.strip())
    for above, below in itertools.pairwise(lines):
        assert cell_len(above) + 1 + cell_len(BREAK.split(below.strip())[0]) > width


def test_the_quickstarts_table_is_two_in_80_columns_and_one_in_120():
    (lines,) = by_measure(frame(read_results(RESULTS / "quickstart.jsonl")))
    table = score_table(lines)
    assert "\n\n".join("\n".join(part) for part in parts(table, 80)) + "\n" == QUICKSTART
    assert len(parts(table, 120)) == 1


def test_a_table_with_room_is_not_folded_at_all():
    table = Table(("a long name of the rows", "a long name of numbers"), (("one two three four", "1"),))
    assert parts(table, 80) == [
        ["a long name of the rows  a long name of numbers", "─" * 47, "one two three four" + " " * 28 + "1"]
    ]


def test_the_columns_are_divided_evenly():
    table = Table(("name", *"abcdef"), (("row", *(["123456789"] * 6)),))
    assert [part[0].split() for part in parts(table, 60)] == [["name", "a", "b", "c"], ["name", "d", "e", "f"]]


def test_of_several_parts_a_later_one_leaves_out_rows_without_numbers():
    table = Table(("name", "a", "b"), (("one", "1" * 30, "2" * 30), ("two", "3" * 30, "–")))
    first, second = parts(table, 40)
    assert [line.split()[0] for line in first[2:]] == ["one", "two"]
    assert [line.split()[0] for line in second[2:]] == ["one"]


def test_a_word_wider_than_the_terminal_is_printed_whole():
    table = Table(("name", "a"), (("x" * 50, "1"),))
    assert "x" * 50 in "\n".join(parts(table, 20)[0])


def test_a_table_without_rows_has_its_heads():
    assert parts(Table(("name", "a"), ()), 80) == [["name  a", "─" * 7]]


def test_the_best_are_bold_and_names_are_no_markup():
    console = Console(width=80, record=True, file=io.StringIO())
    for part in fitted(Table(("name", "[red]"), (("[bold]", Best("1.5")),)), 80):
        console.print(part)
    text = console.export_text(styles=True)
    assert "[bold]" in text
    assert "[red]" in text
    assert "\x1b[1m1.5" in text.replace("\x1b[1m  ", "\x1b[1m").replace("\x1b[1m ", "\x1b[1m")
