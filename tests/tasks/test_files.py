from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bmtpt.errors import DataError
from bmtpt.tasks.files import read_rows
from bmtpt.tasks.layout import Layout
from bmtpt.tasks.sources import from_file


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(path: Path, **layout: str):
    return [row for _, row in read_rows(path, Layout(**layout))]


TABLES = {
    "r.csv": '\ufefftext,label\n"a, b",1\nc,0\n',
    "r.tsv": "text\tlabel\na, b\t1\n\nc\t0\n",
    "quoted.tsv": 'text\tlabel\n"a, b"\t1\nc\t0\n',
    "r.jsonl": '{"text": "a, b", "label": "1"}\n\n{"text": "c", "label": "0"}\n',
    "r.json": '[{"text": "a, b", "label": "1"},\n {"text": "c", "label": "0"}]',
    "blank.csv": '\n\r\ntext,label\n\n"a, b",1\nc,0\n',
    "mac.csv": 'text,label\r"a, b",1\rc,0\r',
    "windows.csv": 'text,label\r\n"a, b",1\r\nc,0\r\n',
}
ROWS = [{"text": "a, b", "label": "1"}, {"text": "c", "label": "0"}]


@pytest.mark.parametrize("name", TABLES)
def test_files_of_every_kind_read_alike_packed_or_not_and_with_any_case_of_their_ending(tmp_path, name):
    assert rows_of(written(tmp_path, name, TABLES[name])) == ROWS
    assert rows_of(written(tmp_path, f"{name}.gz", gzip.compress(TABLES[name].encode()))) == ROWS
    assert rows_of(written(tmp_path, name.upper(), TABLES[name])) == ROWS


@pytest.mark.parametrize(("name", "first", "second"), [("r.csv", "line 2", "line 3"), ("r.jsonl", "line 1", "line 3")])
def test_a_row_is_found_by_its_line(tmp_path, name, first, second):
    rows = from_file(written(tmp_path, name, TABLES[name]))
    assert rows.fetch([1, 0]) == ROWS[::-1]
    assert [rows.place(i) for i in range(len(rows))] == [f"{tmp_path / name}, {each}" for each in (first, second)]


def test_parquet_reads_alike_and_only_what_is_needed(tmp_path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(ROWS).to_parquet(tmp_path / "r.parquet")
    assert rows_of(tmp_path / "r.parquet") == ROWS
    packed = written(tmp_path, "R.PARQUET.GZ", gzip.compress((tmp_path / "r.parquet").read_bytes()))
    assert rows_of(packed) == ROWS
    assert [row for _, row in read_rows(packed, needed=["label"])] == [{"label": "1"}, {"label": "0"}]


OPEN = "the quote that opens here is not closed"
WRONG = [
    ("r.csv", "text,label\na,1\nb,0,c\n", "line 3: 3 values, but the header has 2"),
    ("r.csv", 'label,text\npos,a\nneg,b\npos,c\nneg,"d\npos,e\nneg,f\n', f"line 5: {OPEN}"),
    ("r.tsv", 'label\ttext\npos\ta\nneg\t"d\npos\te\nneg\tf\n', f"line 3: {OPEN}"),
    ("r.csv", 'label,text\n"a\nb","c\nd\n', f"line 3: {OPEN}"),
    ("r.csv", 'label,text\npos,"d" e\nneg,f\n', f"line 2: {OPEN}"),
    ("r.csv", 'label,"text\npos,a\n', f"line 1: {OPEN}"),
    ("r.csv", "label;text\npos;a\n", "'delimiter: \";\"'"),
    ("r.csv", "label\ttext\npos\ta\n", "'delimiter: \"\\\\t\"'"),
    ("r.csv", "text,label,text\na,pos,b\n", "column 'text' is there 2 times"),
    ("r.csv", "text, text\na,b\n", "column 'text' is there 2 times"),
    ("r.csv", "sep=;\nlabel;text\npos;a\n", "'sep=;', is for Excel alone; remove it"),
    ("r.csv", "text,label\na,pos\n".encode("utf-16"), "looks like UTF-16.*'encoding: utf-16'"),
    ("r.csv", "text,label\na,pos\n".encode("utf-32"), "looks like UTF-32.*'encoding: utf-32'"),
    ("r.csv", "text,label\na,pos\n".encode("utf-16-le"), "'encoding: utf-16-le'"),
    # Without the time: the bytes are in the test's name, which every process of pytest-xdist must give it.
    ("r.csv", gzip.compress(b"text,label\n", mtime=0), "packed with gzip"),
    ("r.csv.gz", gzip.compress(b"text,label\na,1\n" * 99, mtime=0)[:-12], "damaged or cut off"),
    ("r.jsonl.gz", b"text", "damaged or cut off"),
    ("r.jsonl", '{"text": 1}\n{oops\n', "line 2: this is not JSON"),
    ("r.jsonl", '{"text": 1, "text": 2}\n', "line 1: this is not JSON \\(the key 'text' is there twice"),
    ("r.jsonl", "[1]\n", "line 1: a row is a JSON object .* a list of rows needs the ending .json"),
    ("r.jsonl", '{"text": ' + "[" * 99_999 + "]" * 99_999 + "}", "line 1: .*nested too deeply"),
    ("r.jsonl", '{"text": ' + "[" * 120 + "]" * 120 + "}", "line 1: .*nested more than 100 levels"),
    ("r.json", '{"text": 1}\n{"text": 2}\n', "rows that are one a line need the ending .jsonl"),
    ("r.json", '{"text": {"0": "a"}}', 'orient="records"'),
    ("r.parquet", "text", "cannot be read"),
    ("r.txt", "text", "only"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), WRONG)
def test_a_file_that_cannot_be_read_is_named_with_its_line(tmp_path, name, content, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        from_file(written(tmp_path, name, content)).sound()
    assert name in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) <= 300


def test_a_delimiter_is_guessed_from_the_columns_that_are_needed(tmp_path):
    path = written(tmp_path, "r.csv", "text;label;of a, b\na;1;c\n")
    with pytest.raises(DataError, match="'delimiter: \";\"'"):
        list(read_rows(path, needed=["text", "label"]))
    path = written(tmp_path, "r.csv", "text;label\na\n")
    assert [row for _, row in read_rows(path, needed=["text;label"])] == [{"text;label": "a"}]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-be", "utf-8"])
def test_a_file_is_read_in_the_encoding_and_with_the_delimiter_that_are_given(tmp_path, encoding):
    mark = "" if encoding in ("latin-1", "utf-16") else "\ufeff"
    path = written(tmp_path, "r.csv", f"{mark}text;label\ncafé, noir;1\n".encode(encoding))
    assert rows_of(path, encoding=encoding, delimiter=";") == [{"text": "café, noir", "label": "1"}]


def test_quotes_are_text_where_the_layout_says_so(tmp_path):
    path = written(tmp_path, "r.tsv", 'text\tlabel\n"a\t1\nb "c"\t0\n')
    assert [row["text"] for row in rows_of(path, quoting="none")] == ['"a', 'b "c"']


def test_wrong_rows_come_in_their_place_and_the_others_follow(tmp_path):
    csv = written(tmp_path, "r.csv", 'a,b\n1,2\n1\n"1"2,3\n3,4\n')
    jsonl = written(tmp_path, "r.jsonl", '{"a": 1}\n{\n[]\n{"a": 2}\n')
    assert [isinstance(row, DataError) for row in rows_of(csv)] == [False, True, True, False]
    assert [number for number, _ in read_rows(csv)] == [2, 3, 4, 5]
    assert [isinstance(row, DataError) for row in rows_of(jsonl)] == [False, True, True, False]


def test_a_long_document_is_one_value(tmp_path):
    text = "a word, " * 100_000
    assert rows_of(written(tmp_path, "r.csv", f'text,label\n"{text}",1\n')) == [{"text": text, "label": "1"}]


def test_a_packed_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("bmtpt.tasks.layout.MOST_CHARACTERS", 1000)
    path = written(tmp_path, "r.jsonl.gz", gzip.compress(b"0" * 5000))
    with pytest.raises(DataError, match="a line has more than 1,000 characters"):
        rows_of(path)


def test_a_quote_that_swallows_millions_of_rows_is_named_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("bmtpt.tasks.delimited.MOST_CHARACTERS", 1000)
    path = written(tmp_path, "r.csv.gz", gzip.compress(b'text,label\na,b\n"c\nd","' + b"e,f\n" * 5000))
    wrong = next(row for _, row in read_rows(path) if isinstance(row, DataError))
    assert "line 4: a value has more than 1,000 characters; close its quote" in str(wrong)


@pytest.mark.parametrize(("between", "said"), [("pos,e\nneg,f\npos,g\n", True), ("e, f\ng, h\ni, j\n", False)])
def test_a_quote_that_is_closed_rows_later_is_said(tmp_path, caplog, between, said):
    rows_of(written(tmp_path, "r.csv", f'label,text\npos,a\nneg,"d\n{between}pos,"\nneg,h\n'))
    assert ("line 3: a quoted value spans 5 lines that look like rows" in caplog.text) is said


def test_a_column_that_cannot_be_decoded_counts_only_where_it_is_needed(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    bad = pyarrow.StringArray.from_buffers(
        2, pyarrow.array([0, 2, 4], "int32").buffers()[1], pyarrow.py_buffer(b"\xff\xfeok")
    )
    late = pyarrow.array([2**62, 0], "timestamp[us]")
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "bad": bad, "late": late}), tmp_path / "r.parquet")
    first, second = rows_of(tmp_path / "r.parquet")
    assert (first["text"], second["text"], second["bad"]) == ("a", "b", "ok")
    assert str(first["bad"]).startswith("unreadable: ")
    assert str(first["late"]).startswith("unreadable: ")


def test_json_keeps_its_types(tmp_path):
    row = {"a": 1, "b": None, "c": [1.5, "é"], "d": {"e": True}}
    assert rows_of(written(tmp_path, "r.jsonl", json.dumps(row))) == [row]


@pytest.mark.parametrize("name", ["gone.csv", f"{'long' * 100}.csv", "nul\0.csv"])
def test_a_file_that_is_not_there_is_named_even_if_no_file_could_have_its_name(tmp_path, name):
    with pytest.raises(DataError, match=r"there is no file .*csv; check its path"):
        rows_of(tmp_path / name)
