"""Tables of answers: whole or not there, readable by pandas, and harmless in a spreadsheet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bmtpt.errors import ArtifactError, BmtptError, DataError, SettingsError
from bmtpt.inference import answer_file
from bmtpt.inference.answer_file import answer_line, answer_row, json_line, written_table
from bmtpt.inference.rows import Asked
from bmtpt.types import Example

ENDINGS = ["csv", "jsonl", "parquet"]
READ = {"csv": pd.read_csv, "jsonl": lambda path: pd.read_json(path, lines=True), "parquet": pd.read_parquet}
EXAMPLE = Example("good", "", "", "")
ANSWER = {"text": "good", "label": "yes", "probability": 0.75, "all": {"yes": 0.75, "no": 0.25}}


def write(path: Path, rows: Iterable[dict[str, Any]], **options: bool) -> None:
    with written_table(path, **options) as table:
        for row in rows:
            table.add(row)


def rows_before_a_wrong_one(rows: Iterable[dict[str, Any]], wrong: str) -> Iterator[dict[str, Any]]:
    yield from rows
    raise DataError(wrong)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("block", [1, 3, 100])
def test_pandas_reads_what_was_written(ending, block, tmp_path, monkeypatch):
    monkeypatch.setattr(answer_file, "BLOCK", block)
    rows = [{"id": i, "text": f'naïve "{i}", row\n{i}', "share": i / 7} for i in range(8)]
    path = tmp_path / f"rows.{ending}"
    write(path, rows)
    pd.testing.assert_frame_equal(READ[ending](path), pd.DataFrame(rows), check_dtype=False)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failure_leaves_what_there_is_under_another_name_and_says_where(ending, tmp_path):
    path = tmp_path / f"rows.{ending}"
    with pytest.raises(DataError, match=r"line 3 is wrong; the rows before it \(2\) are in .*partial"):
        write(path, rows_before_a_wrong_one([{"id": 1}, {"id": 2}], "line 3 is wrong"))
    partial = tmp_path / f"rows.{ending}.partial"
    assert [each.name for each in tmp_path.iterdir()] == [partial.name]
    assert list(READ[ending](partial)["id"]) == [1, 2]
    with pytest.raises(KeyError), written_table(path):  # a fault of ours
        raise KeyError
    assert not path.exists()
    with pytest.raises(DataError, match=r"^no row$"):
        write(path, rows_before_a_wrong_one([], "no row"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_old_file_is_kept_unless_it_may_be_replaced_and_until_the_new_one_is_whole(ending, tmp_path):
    path = tmp_path / f"rows.{ending}"
    write(path, [{"id": 1}])
    old = path.read_bytes()
    with pytest.raises(ArtifactError, match="is there already; overwrite it"):
        write(path, [{"id": 2}])
    with pytest.raises(DataError):
        write(path, rows_before_a_wrong_one([{"id": 2}], "wrong"), overwrite=True)
    assert path.read_bytes() == old
    write(path, [{"id": 3}], overwrite=True)
    assert list(READ[ending](path)["id"]) == [3]


def test_two_at_once_do_not_write_one_file(tmp_path):
    import subprocess
    import sys

    code = f"""if True:
        from pathlib import Path
        from bmtpt.inference.answer_file import written_table
        with written_table(Path({str(tmp_path / "rows.csv")!r})) as table:
            print("ready", flush=True)
            input()
            table.add({{"id": 1}})
    """
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(ArtifactError, match="another process"):
            write(tmp_path / "rows.csv", [{"id": 2}])
        other.communicate("\n")
    assert (tmp_path / "rows.csv").read_text() == "id\n1\n"  # with universal line ends


@pytest.mark.parametrize(
    ("name", "part"), [("rows.xlsx", "ending must be .csv"), ("rows", "ending"), ("none/rows.csv", "folder is missing")]
)
def test_a_place_that_cannot_be_written_is_refused_first(name, part, tmp_path):
    with pytest.raises((SettingsError, ArtifactError), match=part):
        write(tmp_path / name, [])
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_does_not_fit_the_table_is_told_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_file, "BLOCK", 1)
    for ending in ("csv", "parquet"):
        with pytest.raises(DataError, match=r"column 'new' that none of the first .* has; write .jsonl"):
            write(tmp_path / f"rows.{ending}", [{"id": 1}, {"new": 2}])
    with pytest.raises(DataError, match=r"does not fit its parquet column .*; write .jsonl"):
        write(tmp_path / "rows.parquet", [{"id": 1}, {"id": "one"}], overwrite=True)
    write(tmp_path / "rows.jsonl", [{"id": 1}, {"new": "one"}])


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_rows_are_a_file_all_the_same(ending, tmp_path):
    path = tmp_path / f"rows.{ending}"
    write(path, [])
    if ending == "parquet":
        assert len(pd.read_parquet(path)) == 0
    else:
        assert path.read_text() == ""


def test_a_cell_that_a_spreadsheet_would_compute_is_text_in_csv_and_as_it_was_elsewhere(tmp_path):
    attacks = ["=1+1", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")']
    harmless = ["1=1", "a-b", "-1.5", "+3", "1e5", "-", "+", ""]
    rows = [{"=cmd": text} for text in [*attacks, *harmless]]
    write(tmp_path / "rows.csv", rows)
    found = pd.read_csv(tmp_path / "rows.csv", dtype=str, keep_default_na=False)
    assert list(found.columns) == ["'=cmd"]
    assert list(found["'=cmd"]) == [f"'{text}" for text in attacks] + harmless
    write(tmp_path / "rows.parquet", rows)
    assert list(pd.read_parquet(tmp_path / "rows.parquet")["=cmd"]) == [*attacks, *harmless]


def test_a_line_is_json_whatever_a_row_holds():
    row = {"day": date(2024, 5, 1), "gone": math.nan, "deep": [{"x": math.inf}], "half": "\ud800", "bytes": b"x"}
    line = json_line(row)
    assert "\n" not in line
    line.encode()
    assert json.loads(line) == {
        "day": "2024-05-01", "gone": None, "deep": [{"x": None}], "half": "\ud800", "bytes": "b'x'"
    }  # fmt: skip


def test_an_answer_carries_the_columns_of_its_row():
    row = Asked("line 1", "t", EXAMPLE, {"id": 7, "body": "good"})
    assert answer_line(row, ANSWER, several=False) == {**ANSWER, "row": {"id": 7, "body": "good"}}
    assert answer_line(row, ANSWER, several=True)["task"] == "t"
    assert answer_line(row._replace(columns={}), ANSWER, several=False) == ANSWER
    assert answer_row(row, {**ANSWER, "cut": True}, ["yes", "no", "other"]) == {
        "id": 7, "body": "good", "prediction": "yes", "probability": 0.75, "p(yes)": 0.75, "p(no)": 0.25,
        "p(other)": None, "text_cut": True, "answer_cut": False, "error": None,
    }  # fmt: skip


def test_a_row_without_an_answer_carries_its_error():
    row = Asked("line 1", "t", DataError("line 1: empty"), {"id": 7})
    assert answer_line(row, DataError("line 1: empty"), several=False) == {"error": "line 1: empty", "row": {"id": 7}}
    found = answer_row(row, DataError("line 1: empty"), ["yes"])
    assert (found["id"], found["prediction"], found["p(yes)"], found["error"]) == (7, None, None, "line 1: empty")


def test_an_input_with_a_column_of_the_answers_is_refused():
    row = Asked("rows.csv, line 2", "t", EXAMPLE, {"prediction": "yes"})
    with pytest.raises(BmtptError, match=r"rows.csv, line 2: the input has a column 'prediction'"):
        answer_row(row, ANSWER, [])
