"""`bmtpt predict` over files and bytes: what comes in, what comes out, and what a wrong row does."""

from __future__ import annotations

import json

import pandas as pd
import pytest

ROWS = pd.DataFrame({"id": [11, 12, 13], "sentence": ["the film is good .", "the meal is cold .", "a car"]})


def answers_of(ran):
    assert ran.code == 0, ran.err
    return [json.loads(line) for line in ran.out.splitlines()]


def as_csv(path, rows=ROWS):
    rows.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_table_comes_out_with_the_columns_that_went_in(bmtpt, runs, tmp_path, ending):
    rows, out = as_csv(tmp_path / "rows.CSV"), tmp_path / f"answers.{ending}"
    printed = answers_of(bmtpt("predict", "--prompt", runs / "prompt", rows))
    assert [answer["row"] for answer in printed] == [
        {"id": str(i), "sentence": sentence} for i, sentence in ROWS.itertuples(index=False)
    ]
    ran = bmtpt("predict", "--prompt", runs / "prompt", rows, "--out", out)
    assert f"3 answers written to {out}" in ran.out
    if ending == "jsonl":
        assert [json.loads(line) for line in out.read_text().splitlines()] == printed
        return
    table = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
    assert list(table["id"].astype(int)) == [11, 12, 13]
    assert list(table["sentence"]) == list(ROWS["sentence"])
    assert list(table["prediction"]) == [answer["label"] for answer in printed]
    for word in ("negative", "positive"):
        assert list(table[f"p({word})"]) == pytest.approx([answer["all"][word] for answer in printed])
    assert list(table["probability"]) == pytest.approx([answer["probability"] for answer in printed])
    assert {path.name for path in tmp_path.iterdir()} == {rows.name, out.name}


def test_a_wrong_row_ends_the_work_after_the_answers_before_it(bmtpt, runs, tmp_path):
    stdin = b'{"sentence": "the film is good ."}\n{"sentence": "\\ud800"}\n{"sentence": "a car"}\n'
    ran = bmtpt("predict", "--prompt", runs / "prompt", stdin=stdin)
    assert ran.code == 2
    assert len(ran.out.splitlines()) == 1
    assert ran.err.splitlines()[-1].startswith("error: standard input, line 2: column 'sentence' holds half of a char")
    out = tmp_path / "answers.csv"
    stopped = bmtpt("predict", "--prompt", runs / "prompt", "--out", out, stdin=stdin)
    assert stopped.code == 2
    assert f"the rows before it (1) are in {out}.partial" in stopped.err
    assert not out.exists()


def test_a_wrong_row_is_reported_in_its_place_if_that_is_asked_for(bmtpt, runs, tmp_path):
    stdin = b"\xef\xbb\xbfthe film is good .\r\ncaf\xe9\n{curly}\n"
    ran = bmtpt("predict", "--prompt", runs / "prompt", "--on-error", "report", stdin=stdin)
    first, wrong, last = answers_of(ran)
    assert (first["text"], last["text"]) == ("sentiment sentence: the film is good .", "sentiment sentence: {curly}")
    assert set(wrong) == {"error"}
    assert wrong["error"].startswith("standard input, line 2: column 'sentence' holds byte 0xE9")
    assert "rows that could not be answered: 1" in ran.err
    out = tmp_path / "answers.parquet"
    bmtpt("predict", "--prompt", runs / "prompt", "--on-error", "report", "--out", out, stdin=stdin)
    assert list(pd.read_parquet(out)["error"].notna()) == [False, True, False]


def test_a_file_of_answers_is_replaced_only_if_that_is_asked_for(bmtpt, runs, tmp_path):
    rows, out = as_csv(tmp_path / "rows.csv"), tmp_path / "answers.csv"
    command = ["predict", "--prompt", runs / "prompt", rows, "--out", out]
    assert bmtpt(*command).code == 0
    refused = bmtpt(*command)
    assert (refused.code, refused.out) == (2, "")
    assert "is there already; overwrite it" in refused.err
    assert bmtpt(*command, "--overwrite").code == 0
    again = bmtpt("predict", "--prompt", runs / "prompt", out, "--out", tmp_path / "again.csv")
    assert "answers.csv, line 2: the input has a column 'prediction'" in again.err


def test_a_dash_is_standard_input(bmtpt, runs):
    assert len(answers_of(bmtpt("predict", "--prompt", runs / "prompt", "-", stdin="a\nb\n"))) == 2
