from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bmtpt.errors import DataError
from bmtpt.tasks import check_file
from bmtpt.tasks.check import WrongRowsError

TASK = 'name: t\nfile: t.csv\ntext: "t: {text}"\ncontext: text\nlabels: [no, yes]\n'


def task_file(folder: Path, rows, text=TASK) -> Path:
    path = folder / "t.yaml"
    path.write_text(text)
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def plain_rows(count):
    return [{"text": f"x{i}", "label": ("no", "yes")[i % 2]} for i in range(count)]


def test_check_counts_rows_and_labels(tmp_path):
    lines = check_file(task_file(tmp_path, plain_rows(50)))
    assert lines[0].startswith("task t: accuracy")
    assert lines[1:5] == [
        "split stratify: 20 % test, in proportion to the labels, rows of one text together; the others train",
        "train: 40 examples (no 20, yes 20)",
        "select: 0 examples",
        "test: 10 examples (no 5, yes 5)",
    ]


def test_check_names_a_label_that_no_row_has(tmp_path):
    lines = check_file(task_file(tmp_path, plain_rows(50), TASK.replace("[no, yes]", "[no, yes, maybe]")))
    assert "note: no row has the label 'maybe'; check its spelling, or leave it out" in lines


def test_a_file_that_is_not_utf_8_is_refused_with_the_cure(tmp_path):
    path = task_file(tmp_path, plain_rows(50))
    (tmp_path / "t.csv").write_bytes("text,label\ncaf\xe9,yes\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.csv, line 2: column 'text' holds byte 0xE9, which is not UTF-8; save"):
        check_file(path)


def test_check_counts_tokens_if_it_has_a_tokenizer(tmp_path, tiny_backbone):
    lines = check_file(task_file(tmp_path, plain_rows(50)), None, tiny_backbone.tokenizer)
    assert lines[5] == "tokens of a training text: 50 % ≤ 4, 90 % ≤ 4, 99 % ≤ 4, 100 % ≤ 4; the task's limit is 256"


def test_check_lists_every_kind_of_wrong_row_in_the_order_of_the_file(tmp_path):
    path = task_file(tmp_path, plain_rows(2))
    lines = ["x,maybe", "a,b,no", "z,", '"a"b,no', "fine,yes", "x,perhaps"]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *lines, *["x,y,z"] * 30, 'x,"yes']))
    with pytest.raises(WrongRowsError) as caught:
        check_file(path)
    where = f"{tmp_path / 't.csv'}, line"
    assert str(caught.value).startswith(f"{where} 2: label 'maybe' is not one of")
    assert str(caught.value).endswith("; 35 more of 37 rows are wrong")
    shown, counts = caught.value.listed[:20], caught.value.listed[20:]
    starts = ["2: label 'maybe'", "3: 3 values", "4: column 'label' is empty", "5: the quote", "7: label 'perhaps'"]
    assert [line.startswith(f"{where} {start}") for line, start in zip(shown, starts, strict=False)] == [True] * 5
    assert [line.partition(": ")[0] for line in shown[5:]] == [f"{where} {number}" for number in range(8, 23)]
    assert counts == [
        "wrong rows: 36 of 37",
        "31 × … values, but the header has …",
        "2 × label … is not one of the task's labels",
        "2 × the quote that opens here is not closed at the end of its value",
        "1 × column 'label' is empty",
    ]


def test_check_lists_the_wrong_rows_of_all_parts(tmp_path):
    text = TASK.replace("file: t.csv", "files: {train: t.csv, test: u.csv}")
    path = task_file(tmp_path, [*plain_rows(4), {"text": "x", "label": "maybe"}], text)
    (tmp_path / "u.csv").write_text("text,label\nx,no,y\n")
    with pytest.raises(WrongRowsError, match=r"t\.csv, line 6: .*; 1 more of 6 rows are wrong") as caught:
        check_file(path)
    assert "u.csv, line 2: 3 values" in caught.value.listed[1]


def test_check_lists_the_rows_that_name_no_part(tmp_path):
    rows = [{**row, "part": ["train", "dev"][i % 2]} for i, row in enumerate(plain_rows(4))]
    path = task_file(tmp_path, rows, f"{TASK}split_column: part\n")
    with pytest.raises(WrongRowsError, match=r"line 3: column 'part' says 'dev'.*; 1 more of 4 rows are wrong"):
        check_file(path)


def test_what_is_wrong_with_no_row_is_said_as_it_is(tmp_path):
    rows = [{**row, "label": "no"} for row in plain_rows(4)]
    with pytest.raises(DataError, match="every training row has the label 'no'"):
        check_file(task_file(tmp_path, rows))


def test_check_says_what_is_odd_about_the_rows(tmp_path, caplog):
    rows = [*plain_rows(30), {"text": "x0", "label": "yes"}, {"text": "", "label": "no"}]
    lines = check_file(task_file(tmp_path, rows))
    assert "note: 1 of 32 texts are empty" in lines
    assert "note: 1 of 31 texts have rows with different labels" in lines
    assert not caplog.text


def test_check_names_labels_that_are_trained_and_not_tested(tmp_path):
    text = TASK.replace("file: t.csv", "files: {train: t.csv, test: u.csv}")
    path = task_file(tmp_path, plain_rows(4), text)
    (tmp_path / "u.csv").write_text("text,label\nx,no\n")
    assert "note: no test row has the label 'yes'" in check_file(path)
