"""Rows that are too many for memory are the rows that they would be in it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

from bmtpt.errors import DataError
from bmtpt.tasks import SplitLimits, TaskData, check_file, examples, load_data, load_task, own_task, splits
from bmtpt.tasks.examples import Examples, Picked, picked
from bmtpt.tasks.sources import from_memory

LABELS = 'text: "t: {text}"\nlabels: [no, yes]\n'
RULES = ["stratify", "stratify\ngroup: g", "cut", "none", "column\nsplit_column: part"]


def table(count: int = 40) -> pd.DataFrame:
    """Return rows of which every fourth has the text of the one before it, and one has no text."""
    texts = [f"x{i - (i % 4 == 3)}" for i in range(count - 1)] + [" "]
    parts = [("train", "validation", "test")[i % 3] for i in range(count)]
    return pd.DataFrame({"text": texts, "label": ["no", "yes"] * (count // 2), "g": range(count), "part": parts})


def loaded(folder: Path, rule: str, ending: str = "csv", **more) -> TaskData:
    path = folder / f"t.{ending}"
    if ending == "parquet":
        table().to_parquet(path, row_group_size=7)
    elif ending == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table().to_dict("records")))
    else:
        table().to_csv(path, index=False)
    (folder / "t.yaml").write_text(f"name: t\nfile: t.{ending}\nsplit: {rule}\n{LABELS}")
    return load_data(load_task(folder / "t.yaml"), **more)


def contents(data: TaskData) -> dict[str, list[object]]:
    return {part: list(rows) for part, rows in data.parts.items()}


@pytest.mark.parametrize("large", [2**20, 20])
@pytest.mark.parametrize("rule", RULES)
def test_streamed_parts_hold_the_rows_that_they_hold_in_memory(tmp_path, monkeypatch, rule, large):
    monkeypatch.setattr(splits, "LARGE", large)
    whole = loaded(tmp_path, rule)
    monkeypatch.setattr(examples, "IN_MEMORY", 3)
    streamed = loaded(tmp_path, rule)
    assert isinstance(streamed.train, Examples)
    assert contents(streamed) == contents(whole)
    assert streamed.label_counts == whole.label_counts
    assert streamed.notes == whole.notes
    assert [streamed.train[i] for i in (0, -1)] == [whole.train[i] for i in (0, -1)]
    assert streamed.train[1:3] == list(whole.train[1:3])
    assert sorted(e.text for rows in streamed.parts.values() for e in rows) == sorted(
        e.text for rows in whole.parts.values() for e in rows
    )


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_format_streams(tmp_path, monkeypatch, ending):
    whole = loaded(tmp_path, "cut", ending, limits=SplitLimits(train=20))
    monkeypatch.setattr(examples, "IN_MEMORY", 3)
    streamed = loaded(tmp_path, "cut", ending, limits=SplitLimits(train=20))
    assert contents(streamed) == contents(whole)
    assert len(streamed.train) == 20


def test_of_a_table_of_the_datasets_library_only_rows_that_are_asked_for_are_read(monkeypatch):
    read: list[int] = []
    listed = Dataset.to_list
    monkeypatch.setattr(Dataset, "to_list", lambda self: read.append(len(self)) or listed(self))
    rows = from_memory(Dataset.from_pandas(table()))
    assert (len(rows), read) == (40, [])
    assert [row["text"] for row in rows.fetch([39, 0])] == [" ", "x0"]
    assert read == [2]
    spec, _ = own_task(Dataset.from_pandas(table()), {"text": "t: {text}"})
    assert spec.label_words == ("no", "yes")


def test_rows_of_one_text_stay_together_however_many_rows_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "LARGE", 20)
    data = loaded(tmp_path, "stratify")
    assert data.train
    assert data.test
    assert not {e.text for e in data.train} & {e.text for e in data.test}


def test_what_is_wrong_with_a_streamed_row_is_said_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "IN_MEMORY", 3)
    rows = table()
    rows.loc[30, "label"] = "perhaps"
    rows.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "t.yaml").write_text(f"name: t\nfile: t.csv\nsplit: none\n{LABELS}")
    with pytest.raises(DataError, match=r"t\.csv, line 32: label 'perhaps' is not one of"):
        load_data(load_task(tmp_path / "t.yaml"))
    rows["label"] = "no"
    rows.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="every training row has the label 'no'"):
        load_data(load_task(tmp_path / "t.yaml"))
    rows["text"] = ""
    rows["label"] = ["no", "yes"] * 20
    rows.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="every training text is empty"):
        load_data(load_task(tmp_path / "t.yaml"))


def test_many_texts_that_are_training_texts_too_are_found_in_a_draw(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "IN_MEMORY", 3)
    monkeypatch.setattr("bmtpt.tasks.rows.COMPARED", 5)
    for part in ("train", "test"):
        table().to_csv(tmp_path / f"{part}.csv", index=False)
    (tmp_path / "t.yaml").write_text(f"name: t\nfiles: {{train: train.csv, test: test.csv}}\n{LABELS}")
    data = load_data(load_task(tmp_path / "t.yaml"))
    assert "5 of 5 drawn test texts are training texts, too" in data.notes
    assert "2 of 80 texts are empty" in data.notes


def test_the_digest_of_streamed_rows_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "IN_MEMORY", 3)
    train = loaded(tmp_path, "none").train
    assert train.digest == loaded(tmp_path, "none", "jsonl").train.digest
    some = [picked(train, positions) for positions in ([0, 1, 2, 3], [0, 1, 2, 4], [3, 2, 1, 0])]
    assert all(isinstance(each, Picked) for each in some)
    assert len({train.digest, *(each.digest for each in some)}) == 4
    rows = table()
    rows.loc[39, "label"] = "no"
    rows.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "t.yaml").write_text(f"name: t\nfile: t.csv\nsplit: none\n{LABELS}")
    assert load_data(load_task(tmp_path / "t.yaml")).train.digest != train.digest


def test_a_streamed_task_is_checked_as_any_other(tmp_path, monkeypatch):
    loaded(tmp_path, "stratify")
    whole = check_file(tmp_path / "t.yaml")
    monkeypatch.setattr(examples, "IN_MEMORY", 3)
    assert check_file(tmp_path / "t.yaml") == whole
