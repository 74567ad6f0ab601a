"""What is written is what is read; and whatever a file holds, its reader says what is wrong with it, or reads it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmtpt.errors import BmtptError
from bmtpt.tasks import load_data, load_task
from bmtpt.tasks.files import read_rows
from bmtpt.tasks.layout import ENDINGS, Layout

ODD = "\"',;\t|\n\\ \ufeff\u200b\u2028\x85\0🙂אé"
WORDS = ['""', "\r\n", "pos", "NA", "nan", "None", "1.0", "True", "#", "=1+1", '{"a": 1}', "x,y\nz,w\nv,u"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
CELLS = st.lists(st.sampled_from([*ODD, *WORDS]) | ANY_TEXT, max_size=5).map("".join)
TABLES = st.lists(st.fixed_dictionaries({"text": CELLS, "label": CELLS}), max_size=5)
MANY = settings(max_examples=300, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reading")


def read(folder: Path, ending: str, content: bytes, **layout: str):
    packed = gzip.compress(content, 1) if ending.lower().endswith("gz") else content
    path = folder / f"r.{ending}"
    path.write_bytes(packed)
    return [row for _, row in read_rows(path, Layout(**layout))]


@MANY
@given(
    table=TABLES,
    delimiter=st.sampled_from(",;\t|"),
    style=st.sampled_from([(csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\n"), (csv.QUOTE_NONNUMERIC, "\r\n")]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    ending=st.sampled_from(["csv", "tsv", "csv.gz", "TSV.GZ"]),
)
def test_a_table_that_the_csv_module_writes_is_read_as_it_was(folder, table, delimiter, style, encoding, ending):
    written = io.StringIO(newline="")
    writer = csv.DictWriter(written, ["text", "label"], delimiter=delimiter, quoting=style[0], lineterminator=style[1])
    writer.writeheader()
    writer.writerows(table)
    content = written.getvalue().encode(encoding)
    assert read(folder, ending, content, encoding=encoding, delimiter=delimiter) == table


@MANY
@given(table=TABLES, ending=st.sampled_from(["csv", "tsv"]))
def test_a_table_that_pandas_writes_is_read_as_it_was(folder, table, ending):
    pandas = pytest.importorskip("pandas")
    table = [{key: cell.replace("\r", "") for key, cell in row.items()} for row in table]  # pandas leaves it unquoted
    frame = pandas.DataFrame(table, columns=["text", "label"], dtype=object)
    assert read(folder, ending, frame.to_csv(index=False, sep=",\t"[ending == "tsv"]).encode()) == table


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | CELLS,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(CELLS, each, max_size=3),
    max_leaves=3,
)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.dictionaries(CELLS, VALUES, max_size=3), max_size=4), ascii=st.booleans())
def test_json_is_read_as_it_was_written(folder, rows, ascii):
    lines = "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows)
    assert read(folder, "jsonl", lines.encode()) == rows
    assert read(folder, "json.gz", json.dumps(rows, ensure_ascii=ascii).encode()) == rows


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "text": CELLS | st.none(),
                "label": st.integers(-(2**63), 2**63 - 1),
                "share": st.floats() | st.none(),
                "answers": st.lists(CELLS, max_size=3),
                "when": st.datetimes() | st.none(),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_parquet_is_read_as_it_was_written(folder, rows):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    held = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), held)
    for row, wanted in zip(read(folder, "parquet", held.getvalue()), rows, strict=True):
        nan = wanted["share"] is not None and math.isnan(wanted["share"])
        assert math.isnan(row.pop("share")) if nan else row.pop("share") == wanted["share"]
        assert row == {key: value for key, value in wanted.items() if key != "share"}


LINES = [b"text,label\n", b"a,pos\n", b'{"text": "a", "label": "pos"}\n', b'{"text": "\\ud800", "label": 1}\n']
BYTES = [
    b'"',
    b",",
    b"\t",
    b"\r",
    b"\n",
    b"\0",
    b"\xe9",
    b"[",
    b"{",
    b"}",
    b"]",
    b"NaN",
    b"1e999",
    b"[" * 5000,
    b"9" * 5000,
]
MARKS = [b"\xff\xfe", b"\xef\xbb\xbf", b"PAR1", b"\x1f\x8b", b"PK\x03\x04"]
FRAGMENTS = st.lists(st.sampled_from([*LINES, *BYTES, *MARKS]) | st.binary(max_size=5), max_size=8).map(b"".join)


def sentence_of(call) -> str:
    """What a call is refused with; "" if it is not. Any other error fails the test."""
    try:
        call()
    except BmtptError as error:
        return str(error)
    return ""


@MANY
@given(content=FRAGMENTS, ending=st.sampled_from(ENDINGS), name=st.sampled_from(["", ".gz"]), pack=st.booleans())
def test_whatever_a_file_holds_a_task_reads_it_or_says_what_is_wrong(folder, content, ending, name, pack):
    (folder / f"t.{ending}{name}").write_bytes(gzip.compress(content, 1) if pack else content)
    task = f'name: t\nfile: t.{ending}{name}\ntext: "{{text}}"\nlabels: [pos, neg]\nsplit: none\n'
    (folder / "t.yaml").write_text(task)
    sentence = sentence_of(lambda: load_data(load_task(folder / "t.yaml")))
    assert f"t.{ending}" in sentence  # one label at most, so there is always something to say
    assert len(sentence) < 300 + len(str(folder))


@MANY
@given(content=FRAGMENTS, cut=st.integers(1, 200))
def test_a_packed_file_that_is_cut_is_refused(folder, content, cut):
    whole = gzip.compress(content + b"text,label\n" + b"a,pos\n" * 20, 1)
    (folder / "d.csv.gz").write_bytes(whole[:-cut])
    assert "d.csv.gz" in sentence_of(lambda: list(read_rows(folder / "d.csv.gz"))) or cut >= len(whole)


YAML = """name: t
file: t.csv
text: "t: {text} {other}"
context: text
labels: {a: b, c: d}
metrics: [accuracy]
max_length: 9
"""
SIGNS = ["", *"{}[]:~'\"\t#", ": ", "- ", "\n", "\n ", "&a ", "*a", "!!int ", "<<: ", "1.0", "9" * 5000]
EDITS = st.tuples(st.integers(0, len(YAML)), st.integers(0, 12), st.sampled_from(SIGNS) | st.text(max_size=3))


@MANY
@given(edits=st.lists(EDITS, max_size=4))
def test_whatever_a_task_file_holds_it_is_a_task_or_refused_with_its_name(folder, edits):
    text = YAML
    for at, gone, new in edits:
        text = text[:at] + new + text[at + gone :]
    path = folder / "e.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    sentence = sentence_of(lambda: load_task(path))
    assert not sentence or "e.yaml" in sentence
