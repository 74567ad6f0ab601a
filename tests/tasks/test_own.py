from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bmtpt.errors import DataError, TaskError
from bmtpt.tasks import load_data, own_task

LABELS = ["billing", "other", "technical", "other"]
ROWS = [{"body": f"text {i}", "team": LABELS[i % 4]} for i in range(40)]


def dataframe(rows):
    return pytest.importorskip("pandas").DataFrame(rows)


def dataset(rows):
    return pytest.importorskip("datasets").Dataset.from_list(rows)


def as_jsonl(rows, folder: Path):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def loaded(rows, **keys):
    answer = {} if "answers" in keys else {"label": "team"}
    spec, tables = own_task(rows, {"text": "ticket: {body}", **answer, **keys})
    return load_data(spec, rows=tables)


@pytest.mark.parametrize("kind", ["list", "frame", "dataset", "path", "text of a path"])
def test_rows_of_every_kind_give_the_same_examples(tmp_path, kind):
    path = as_jsonl(ROWS, tmp_path)
    makers = {"list": list, "frame": dataframe, "dataset": dataset, "path": lambda _: path}
    data = loaded(makers.get(kind, lambda _: str(path))(ROWS), name="t")
    assert data.parts == loaded(ROWS, name="t").parts
    assert data.task.label_words == ("billing", "other", "technical")
    assert (len(data.train), len(data.select), len(data.test)) == (32, 0, 8)
    assert data.label_counts["other"] == {"train": 16, "select": 0, "test": 4}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([2, 10], ("10", "2")),
        ([True, False], ("false", "true")),
        ([1.0, 0.0], ("0", "1")),
        (list(np.array([1, 0])), ("0", "1")),
        (["b ", "a"], ("a", "b")),
    ],
)
def test_labels_are_taken_from_the_rows_as_sorted_text(raw, words):
    rows = [{"body": f"text {i}", "team": raw[i % 2]} for i in range(10)]
    for shown in (rows, dataframe(rows)):
        data = loaded(shown)
        assert data.task.label_words == words
        assert all(example.target in words for example in data.train)


def test_labels_may_be_given_words_or_an_order():
    rows = [{"body": f"text {i}", "team": i % 2} for i in range(10)]
    assert loaded(rows, labels={0: "no", 1: "yes"}).task.label_words == ("no", "yes")
    assert loaded(rows, labels=[1, 0]).task.label_words == ("1", "0")


def test_the_task_is_named_by_its_answer_its_file_or_its_user(tmp_path):
    assert loaded(ROWS).task.name == "team"
    assert loaded(as_jsonl(ROWS, tmp_path)).task.name == "rows"
    assert loaded(ROWS, name="tickets").task.name == "tickets"
    assert (
        loaded([{"body": row["body"], "my team!": row["team"]} for row in ROWS], label="my team!").task.name
        == "my-team"
    )


def test_tables_by_part_are_the_parts_they_are_named_for():
    data = loaded({"train": ROWS[:20], "test": dataframe(ROWS[20:])})
    assert [len(part) for part in data.parts.values()] == [20, 0, 20]


def test_numbers_and_free_answers_need_no_labels():
    rows = [{"body": f"text {i}", "team": i / 10} for i in range(10)]
    data = loaded(rows, steps=10, split="none")
    assert [example.target for example in data.train] == [f"0.{i}" for i in range(10)]
    assert loaded(ROWS, answers="team").task.kind == "answers"


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_a_missing_label_is_named_by_its_row(missing):
    rows = [*ROWS[:5], {"body": "x", "team": missing}]
    with pytest.raises(DataError, match="the rows given, row 6: column 'team' is empty"):
        loaded(rows)
    with pytest.raises(DataError, match="the rows given, row 6: column 'team' is empty"):
        loaded(dataframe(rows))


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["a"] * 10, "one label only"),
        ([], "no rows"),
        ([i / 10 for i in range(1, 9)], "give 'steps' to predict numbers"),
        ([f"answer {i}" for i in range(30)], "give answers='team'"),
    ],
)
def test_a_column_that_holds_no_labels_is_refused(labels, sentence):
    with pytest.raises(DataError, match=sentence):
        loaded([{"body": "x", "team": label} for label in labels])


@pytest.mark.parametrize("rows", [None, 3, object(), [1, 2], {"dev": ROWS}, {}])
def test_rows_of_another_kind_are_refused_with_what_is_wanted(rows):
    with pytest.raises(TypeError, match="rows"):
        loaded(rows)


def test_a_wrong_key_is_named():
    with pytest.raises(TaskError, match="task 'team': unknown key 'contxt'; did you mean 'context'"):
        loaded(ROWS, contxt="body")
    with pytest.raises(DataError, match="row 1: there is no column 'bdy'; the columns are body, team"):
        loaded(ROWS, text="{bdy}")


def test_a_split_column_is_followed():
    parts = ["train", "train", "test", "validation"]
    data = loaded([{**row, "part": parts[i % 4]} for i, row in enumerate(ROWS)], split_column="part")
    assert [len(part) for part in data.parts.values()] == [20, 10, 10]


KINDS = ["list", "frame", "dataset", "csv", "tsv", "jsonl", "json", "parquet"]


def given_as(kind, rows, folder: Path):
    frame = dataframe(rows)
    path = folder / f"rows.{kind}"
    writers = {
        "csv": lambda: frame.to_csv(path, index=False),
        "tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "json": lambda: frame.to_json(path, orient="records"),
        "parquet": lambda: frame.to_parquet(path),
    }
    if kind in writers:
        writers[kind]()
        return path
    return {"list": rows, "frame": frame, "dataset": dataset(rows)}[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [(True, False), (1.0, 0.0), (1, 0), ("True", "False"), ("1.0", "0.0")])
def test_a_label_is_the_same_from_every_kind_of_rows(tmp_path, kind, labels):
    rows = [{"body": f'text {i}, "quoted"', "team": labels[i % 2]} for i in range(10)]
    written = ("false", "true") if str(labels[0]) == "True" else ("0", "1")
    shown = given_as(kind, rows, tmp_path)
    assert loaded(shown).task.label_words == written
    words = {labels[0]: "good", labels[1]: "bad"}
    data = loaded(shown, labels=words, split="none")
    assert [example.target for example in data.train] == ["good", "bad"] * 5
    assert data.train[3].text == 'ticket: text 3, "quoted"'


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_taken_for_no_labels_whatever_the_kind_of_rows(tmp_path, kind):
    rows = [{"body": f"text {i}", "team": i % 4 + 0.5} for i in range(10)]
    with pytest.raises(DataError, match=r"numbers such as 0\.5; give 'steps'"):
        loaded(given_as(kind, rows, tmp_path))


def test_labels_that_would_be_one_are_refused():
    for labels in ({"1": "a", "1.0": "b"}, {True: "a", "TRUE": "b"}, ["1", 1.0, "2"]):
        with pytest.raises(DataError, match=r"labels: label '(1|true)' is there 2 times"):
            loaded(ROWS, labels=labels)


def test_a_file_is_read_as_its_arguments_say(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("body;team\ncafé, noir;a\nthé;b\n".encode("latin-1"))
    data = loaded(path, encoding="latin-1", delimiter=";", split="none")
    assert [example.text for example in data.train] == ["ticket: café, noir", "ticket: thé"]
    for keys in ({"encoding": "latin-99"}, {"delimiter": ";;"}, {"quoting": "some"}):
        with pytest.raises(TaskError, match=f"key '{next(iter(keys))}'"):
            loaded(path, **keys)
    with pytest.raises(TaskError, match="key 'delimiter' says how a file is read, and the rows are in memory"):
        loaded(ROWS, delimiter=";")


def test_arrays_of_answers_are_lists_of_them():
    rows = [{"body": f"text {i}", "team": {"text": np.array(["a", "b"], object)}} for i in range(5)]
    assert loaded(dataframe(rows), answers="team", split="none").train[0].references == ("a", "b")
    with pytest.raises(DataError, match="row 1: an answer is a dict, not a text"):
        loaded([{"body": "x", "team": [{"a": 1}]}], answers="team", split="none")


@pytest.mark.parametrize("missing", ["NA", "NaT"])
def test_what_pandas_writes_for_a_missing_value_is_one(missing):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(DataError, match="row 41: column 'body' is empty"):
        loaded([*ROWS, {"body": getattr(pandas, missing), "team": "other"}])


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ({"a"}, "column 'team' holds a set, not a label"),
        (object(), "column 'team' holds an object, not a label"),
        (b"a", "column 'team' holds bytes; save it as text"),
        (10**5000, "column 'team' cannot be read .a whole number of thousands of digits"),
    ],
    ids=["set", "object", "bytes", "huge number"],
)
def test_what_is_no_label_is_refused_by_its_row(label, sentence):
    with pytest.raises(DataError, match=f"row 41: {sentence}"):
        loaded([*ROWS, {"body": "x", "team": label}])


def test_a_label_with_braces_needs_a_word():
    rows = [{"body": f"text {i}", "team": "{}"[i % 2]} for i in range(10)]
    with pytest.raises(TaskError, match="key 'labels': "):
        loaded(rows)
    assert loaded(rows, labels={"{": "open", "}": "closed"}).task.label_words == ("open", "closed")


def test_rows_of_one_text_leave_no_test_part_and_that_is_said(caplog):
    data = loaded([{**row, "body": "same"} for row in ROWS])
    assert (len(data.train), len(data.test)) == (40, 0)
    assert "no row is left for the test part" in caplog.text


def test_a_column_that_is_there_twice_is_refused():
    with pytest.raises(DataError, match="row 2: column '1' is there 2 times"):
        loaded([*ROWS[:1], {1: "a", "1": "b", **ROWS[1]}])
    pandas = pytest.importorskip("pandas")
    with pytest.raises(DataError, match="column 'body' is there 2 times"):
        loaded(pandas.DataFrame([["a", "b", "x"]], columns=["body", "body", "team"]))
