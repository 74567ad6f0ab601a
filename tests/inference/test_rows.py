"""What is answered: lines of a stream, rows of files by their ending, and what is wrong with some of them."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from bmtpt.errors import BmtptError, DataError, SettingsError
from bmtpt.inference.rows import Asked, examples_of, file_rows, stream_rows
from bmtpt.tasks import TaskSpec, load_task
from bmtpt.types import Example

GOOD = '{"premise": "a", "hypothesis": "b"}'


@pytest.fixture
def tasks(tiny_task_folder) -> dict[str, TaskSpec]:
    return {name: load_task(tiny_task_folder / f"{name}.yaml") for name in ("sentiment", "pairs", "answers")}


@pytest.fixture
def sentiment(tasks) -> dict[str, TaskSpec]:
    return {"sentiment": tasks["sentiment"]}


@pytest.fixture
def pairs(tasks) -> dict[str, TaskSpec]:
    return {"pairs": tasks["pairs"]}


def stream(lines: Iterable[str | bytes]) -> io.BytesIO:
    return io.BytesIO(b"".join(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines))


def shown(rows: Iterable[Asked]) -> list[str]:
    """The text of each row, or its error."""
    return [row.example.text if isinstance(row.example, Example) else f"error: {row.example}" for row in rows]


# Lines of a stream


def test_lines_are_rows_if_the_first_is_a_json_object_and_texts_otherwise(sentiment):
    rows = list(stream_rows(stream(['{"sentence": "good", "id": 7}', "", '{"sentence": "bad"}']), sentiment))
    assert shown(rows) == ["sentiment sentence: good", "sentiment sentence: bad"]
    assert [row.columns for row in rows] == [{"sentence": "good", "id": 7}, {"sentence": "bad"}]
    assert [row.where for row in rows] == ["standard input, line 1", "standard input, line 3"]
    texts = list(stream_rows(stream(["good", "", "[bad]", "3"]), sentiment))
    assert shown(texts) == [f"sentiment sentence: {text}" for text in ("good", "[bad]", "3")]
    assert not any(row.columns for row in texts)


def test_a_stream_is_one_kind_of_line_throughout(sentiment):
    texts = shown(stream_rows(stream(["good", '{"sentence": "bad"}', "{bad}", "fine"]), sentiment))
    assert texts[1].startswith("error: standard input, line 2: this is a JSON object, and the first line is a text")
    assert [texts[0], *texts[2:]] == [f"sentiment sentence: {text}" for text in ("good", "{bad}", "fine")]
    rows = shown(stream_rows(stream(['{"sentence": "bad"}', "good"]), sentiment))
    assert rows[1].startswith("error: standard input, line 2: this is not JSON")


def test_the_format_overrules_the_first_line(sentiment):
    lines = ['{"sentence": "bad"}', '{"sentence"']
    assert shown(stream_rows(stream(lines), sentiment, "text")) == [f"sentiment sentence: {line}" for line in lines]
    assert all(text.startswith("error: ") for text in shown(stream_rows(stream(["good", "bad"]), sentiment, "jsonl")))


def test_a_text_that_begins_with_a_brace_is_a_text_and_a_torn_first_row_is_told(sentiment, caplog):
    (text,) = shown(stream_rows(stream(["{curly} film"]), sentiment))
    assert text == "sentiment sentence: {curly} film"
    assert "standard input, line 1: this is not JSON" in caplog.text
    assert "lines are taken for texts (--format jsonl says that they are rows)" in caplog.text


def test_a_table_in_a_stream_is_read_as_one_and_never_as_texts(sentiment):
    table = {
        "csv": [b"id,sentence\r\n", b'7,"good, ""very"""\r\n'],
        "tsv": [b"id\tsentence\n", b'7\t"good, ""very"""\n'],
    }
    for form, lines in table.items():
        with pytest.raises(DataError, match=f"line 1 names the column 'sentence' .* say --format {form}"):
            list(stream_rows(stream(lines), sentiment))
        (row,) = stream_rows(stream(lines), sentiment, form)
        assert shown([row]) == ['sentiment sentence: good, "very"']
        assert (row.where, row.columns["id"]) == ("standard input, line 2", "7")
    assert shown(stream_rows(stream(["sentence"]), sentiment, "text")) == ["sentiment sentence: sentence"]
    torn = shown(stream_rows(stream(["id,sentence", "1", "2,b"]), sentiment, "csv"))
    assert torn[0].startswith("error: standard input, line 2: 1 values, but the header has 2")
    assert torn[1] == "sentiment sentence: b"


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_text(sentiment):
    for lines in (
        [b"\xef\xbb\xbfgood\r\n", b"bad\r\n"],
        [b'\xef\xbb\xbf{"sentence": "good"}\r\n', b'{"sentence": "bad"}'],
    ):
        assert shown(stream_rows(stream(lines), sentiment)) == ["sentiment sentence: good", "sentiment sentence: bad"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b"caf\xe9\n", "byte 0xE9, which is not UTF-8"),
        (b'{"sentence": "caf\xe9"}\n', "byte 0xE9, which is not UTF-8"),
        (b'{"sentence": "\\ud800"}\n', "half of a character"),
        (b'{"sentence": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", "nested"),
        (b'{"sentence": null}\n', "column 'sentence' is empty"),
        (b'{"sentense": "x"}\n', "no column 'sentence'"),
    ],
)
def test_a_wrong_line_is_wrong_alone_and_named(line, part, sentiment):
    first = b'{"sentence": "good"}\n' if line.startswith(b"{") else b"good\n"
    before, wrong, after = shown(stream_rows(io.BytesIO(first + line + first), sentiment))
    assert before == after == "sentiment sentence: good"
    assert wrong.startswith("error: standard input, line 2")
    assert part in wrong
    assert len(wrong) < 300


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"premise": "a", "hypothesis"', "this is not JSON"),
        ('{"premise": "a"}', "hypothesis"),
        ('{"premise": "a", "hypothesis": null}', "hypothesis"),
        ("plain text", "this is not JSON"),
        ("[1, 2]", "a row is a JSON object"),
    ],
)
def test_a_task_of_several_columns_takes_json_objects_from_the_first_line_on(pairs, line, part):
    for lines in ([GOOD, "", line], ["", "", line, GOOD]):
        found = shown(stream_rows(stream(lines), pairs, name="new.jsonl"))
        (wrong,) = [text for text in found if text.startswith("error: ")]
        assert wrong.startswith("error: new.jsonl, line 3")
        assert part in wrong
        assert "pairs premise: a hypothesis: b" in found


def test_texts_for_several_columns_or_tasks_are_refused(tasks, pairs):
    with pytest.raises(SettingsError, match="cannot give the columns hypothesis, premise"):
        next(stream_rows(stream(["x"]), pairs, "text"))
    with pytest.raises(SettingsError, match="cannot give its task"):
        next(stream_rows(stream(["x"]), tasks, "text"))


def test_rows_of_several_tasks_say_whose_they_are(tasks):
    lines = ['{"task": "sentiment", "sentence": "bad"}', "", '{"premise": "a", "task": "pairs", "hypothesis": "b"}']
    rows = list(stream_rows(stream(lines), tasks))
    assert [row.task for row in rows] == ["sentiment", "pairs"]
    assert shown(rows) == ["sentiment sentence: bad", "pairs premise: a hypothesis: b"]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"sentence": "a"}', ["has no field 'task'", "answers, pairs, sentiment"]),
        ('{"task": "sentimen", "sentence": "a"}', ["'sentimen'", "did you mean 'sentiment'?"]),
        ('{"task": ["pairs"], "sentence": "a"}', ["task ['pairs']", "did you mean 'pairs'?"]),
        ('{"task": "pairs", "premise": "a"}', ["hypothesis"]),
        ('{"task": "pairs"', ["not JSON"]),
        ("the film is good .", ["not JSON"]),
    ],
)
def test_a_row_of_no_known_task_is_wrong_and_named(tasks, line, parts):
    _, wrong = shown(stream_rows(stream(['{"task": "sentiment", "sentence": "a"}', "", line]), tasks))
    assert wrong.startswith("error: standard input, line 3")
    assert all(part in wrong for part in parts), wrong


# Files


TABLE = pd.DataFrame({"id": [1, 2], "sentence": ["good", 'bad, "very"'], "label": ["x", "y"]})
WRITE = {
    "csv": lambda path: TABLE.to_csv(path, index=False),
    "tsv": lambda path: TABLE.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda path: TABLE.to_json(path, orient="records", lines=True),
    "json": lambda path: TABLE.to_json(path, orient="records"),
    "parquet": TABLE.to_parquet,
}


@pytest.mark.parametrize("packed", [False, True], ids=["", "gz"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet", "CSV", "Parquet"])
def test_every_format_of_tasks_is_read_by_its_ending_with_all_its_columns(ending, packed, sentiment, tmp_path):
    path = tmp_path / f"rows.{ending}"
    WRITE[ending.lower()](path)
    if packed:
        whole, path = path, tmp_path / f"rows.{ending}.gz"
        path.write_bytes(gzip.compress(whole.read_bytes()))
    rows = list(file_rows(path, sentiment))
    assert shown(rows) == ["sentiment sentence: good", 'sentiment sentence: bad, "very"']
    assert [str(row.columns["id"]) for row in rows] == ["1", "2"]
    assert [row.columns["label"] for row in rows] == ["x", "y"]


def test_a_text_file_holds_a_text_a_line_and_other_endings_are_refused_unless_the_format_is_given(sentiment, tmp_path):
    for name in ("rows.txt", "rows.TXT"):
        (tmp_path / name).write_text('{"sentence": "good"}\n')
        assert shown(file_rows(tmp_path / name, sentiment)) == ['sentiment sentence: {"sentence": "good"}']
    odd = tmp_path / "rows.log"
    odd.write_text('{"sentence": "good"}\n')
    with pytest.raises(DataError, match=r"rows.log: the ending is none of .txt, .*--format"):
        file_rows(odd, sentiment)
    assert shown(file_rows(odd, sentiment, "jsonl")) == ["sentiment sentence: good"]
    for name in ("nowhere.csv", f"{'long' * 100}.csv"):
        with pytest.raises(DataError, match="there is no file"):
            file_rows(tmp_path / name, sentiment)
    with pytest.raises(BmtptError, match="ending is none of"):
        list(file_rows(tmp_path, sentiment))


def test_a_pipe_is_read_as_standard_input_is(sentiment, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text('{"sentence": "good"}\n'))
    writer.start()
    assert shown(file_rows(pipe, sentiment)) == ["sentiment sentence: good"]
    writer.join()


def test_a_file_and_a_stream_are_read_as_the_files_of_their_task_are(sentiment, tmp_path):
    tasks = {"sentiment": sentiment["sentiment"].model_copy(update={"encoding": "latin-1", "delimiter": ";"})}
    path = tmp_path / "rows.csv"
    path.write_bytes("id;sentence\n1;café, très bien\n".encode("latin-1"))
    wanted = ["sentiment sentence: café, très bien"]
    assert shown(file_rows(path, tasks)) == wanted
    assert shown(stream_rows(io.BytesIO(path.read_bytes()), tasks, "csv")) == wanted
    assert shown(stream_rows(io.BytesIO(b"caf\xe9\n"), tasks)) == ["sentiment sentence: café"]


def test_a_wrong_row_of_a_table_is_named_and_the_others_follow(sentiment, tmp_path):
    path = Path(tmp_path, "rows.csv")
    path.write_text("sentence,id\ngood,1\nbad\nfine,3\n")
    first, wrong, last = file_rows(path, sentiment)
    assert str(wrong.example).startswith(f"{path}, line 3: 1 values, but the header has 2")
    assert (first.columns["id"], last.columns["id"]) == ("1", "3")


# Objects in memory


def test_rows_that_need_preparation_are_prepared():
    row = {
        "text": "Mark told Pete lies",
        "span1_index": 0,
        "span1_text": "Mark",
        "span2_index": 2,
        "span2_text": "Pete",
    }
    wsc = {"wsc": load_task("wsc")}
    (example,) = examples_of([row], wsc["wsc"])
    assert "* Mark * told # Pete # lies" in example.text
    assert shown(stream_rows(stream([json.dumps(row)]), wsc)) == [example.text]
