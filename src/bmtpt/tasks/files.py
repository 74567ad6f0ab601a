"""Read rows from a file by its ending: .csv, .tsv, .jsonl, .json or .parquet, each also as .gz, in any case.

Rows come one by one, so that a long file needs little memory. A row that is wrong comes as the error that says so, and
the rows after it follow; whether the first such row ends the work is for the caller to say.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from bmtpt.errors import DataError
from bmtpt.tasks.delimited import delimited
from bmtpt.tasks.layout import (
    FileRow,
    Layout,
    Unreadable,
    distinct,
    kind_of,
    lines_of,
    place,
    with_needed,
)

MOST_UNPACKED = 2**33
"""Bytes of a .parquet.gz, which is unpacked to the disk before it is read."""
MOST_JSON = 2**26
"""Characters of a .json file, which is read as a whole."""
BUFFER = 2**16
"""Bytes of a parquet column that are read at a time."""
DEEPEST = 100
"""Most brackets inside one another in a JSON row."""
OTHER_KINDS = {
    b"\x1f\x8b": "packed with gzip; add .gz to its name",
    b"PK\x03\x04": "a zip or Excel file; save it as CSV",
    b"PAR1\x15": "a parquet file; name it .parquet",
}
PLAIN = Layout()


def read_rows(path: Path, layout: Layout = PLAIN, needed: Collection[str] = ()) -> Iterator[FileRow]:
    """Yield a file's rows in order, the wrong ones as errors.

    Args:
        layout: Encoding, delimiter and quoting of a text file.
        needed: Columns without which a table is of no use. Parquet then reads no others; () reads them all.

    Raises:
        DataError: The file is missing, of another kind or damaged, a needed column is not there, or a column is there
            twice.
    """
    kind = kind_of(path)
    if not os.path.isfile(path):  # unlike Path.is_file, never raises
        raise DataError(f"there is no file {path}; check its path")
    with _named(path, layout.encoding):
        if kind == "parquet":
            yield from _parquet(path, needed)
            return
        with _opened(path, layout.encoding) as file:
            if kind == "json":
                yield from _json(file, path)
            elif kind == "jsonl":
                yield from _json_lines(file, path)
            else:
                delimiter = layout.delimiter or ("\t" if kind == "tsv" else ",")
                yield from delimited(file, path, delimiter, layout.quoting, needed)


@contextmanager
def _named(path: Path, encoding: str) -> Iterator[None]:
    """Say of which file a library complains."""
    try:
        yield
    except UnicodeError as error:
        raise DataError(f"{path}: the file is not {encoding} ({error}); give the task its 'encoding'") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the .gz file is damaged or cut off ({error}); pack or copy it again") from error
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror or error})") from error


def _bytes_of(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[TextIO]:
    """Open a file as text. Bytes that are not of its encoding stay in their cells, and count if the cell is needed."""
    plain = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    with _bytes_of(path) as raw:
        head = raw.peek(1024)[:1024]
        if other := next((name for mark, name in OTHER_KINDS.items() if head.startswith(mark)), None):
            raise DataError(f"{path}: the file is {other}")
        if plain and (name := _wide_encoding(head)):
            raise DataError(
                f"{path}: the file looks like {name.upper()}; save it as UTF-8, or give the task 'encoding: {name}'"
            )
        with io.TextIOWrapper(raw, "utf-8-sig" if plain else encoding, "surrogateescape", newline="") as file:
            yield file


def _wide_encoding(head: bytes) -> str:
    """Name the encoding of a file by its first bytes if its characters have several bytes each; "" if not."""
    marks = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    if named := next((name for mark, name in marks.items() if head.startswith(mark)), ""):
        return named
    return "" if 3 * head.count(0) <= len(head) else "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"


def _json_lines(file: TextIO, path: Path) -> Iterator[FileRow]:
    for number, line in enumerate(lines_of(file, path), start=1):
        if line.strip():
            yield FileRow(number, json_row(line, place(path, number)))


def json_row(line: str, where: str) -> dict[str, Any] | DataError:
    """Return the row of a line of JSON, or what is wrong with it."""
    try:
        return _checked_object(_json_value(line), where)
    except (ValueError, RecursionError) as error:
        return DataError(f"{where}: this is not JSON ({_json_reason(error).partition(': line')[0]})")


def _json(file: TextIO, path: Path) -> Iterator[FileRow]:
    text = file.read(MOST_JSON)
    if len(text) == MOST_JSON:
        raise DataError(f"{path}: more than {MOST_JSON:,} characters; write one row a line into a .jsonl file")
    try:
        found = _json_value(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        hint = "; rows that are one a line need the ending .jsonl" if "Extra data" in str(error) else ""
        raise DataError(f"{path}: this is not JSON ({_json_reason(error)}){hint}") from error
    if not isinstance(found, list):
        raise DataError(
            f'{path}: a .json file holds a list of rows such as [{{"text": "…"}}] (pandas: orient="records")'
        )
    for number, row in enumerate(found, start=1):
        yield FileRow(number, _checked_object(row, place(path, number)))


def _json_value(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key '{twice}' is there twice")
    return found


def _json_reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}: line {error.lineno} column {error.colno}"
    return str(error)


def _checked_object(row: Any, where: str) -> dict[str, Any] | DataError:
    if not isinstance(row, dict):
        hint = "; a list of rows needs the ending .json" if isinstance(row, list) else ""
        return DataError(f'{where}: a row is a JSON object such as {{"text": "…"}}{hint}')
    level: list[Any] = [row]
    for _ in range(DEEPEST):
        level = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return row
    return DataError(f"{where}: the row is nested more than {DEEPEST} levels deep")


def _parquet(path: Path, needed: Collection[str]) -> Iterator[FileRow]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    with _on_disk(path) as source:
        try:
            # Threads and whole column chunks would hold, and keep, tens of MiB more; Python's own part takes the time.
            file = parquet.ParquetFile(source, pre_buffer=False, buffer_size=BUFFER)
            names = with_needed(distinct(file.schema_arrow.names, path), needed, path)
            columns = [name for name in names if name in needed] if needed else None
            number = 0
            for batch in file.iter_batches(1024, columns=columns, use_threads=False):
                for row in _rows_of(batch):
                    number += 1
                    yield FileRow(number, row)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: the file cannot be read ({' '.join(str(error).split())[:200]})") from error
        finally:
            pyarrow.default_memory_pool().release_unused()


@contextmanager
def _on_disk(path: Path) -> Iterator[Any]:
    """Give a file that can be read from any position, as parquet must be: a packed one is unpacked first."""
    if not path.name.lower().endswith(".gz"):
        yield path
        return
    with _bytes_of(path) as packed, tempfile.TemporaryFile() as unpacked:
        while piece := packed.read(2**20):
            unpacked.write(piece)
            if unpacked.tell() > MOST_UNPACKED:
                raise DataError(f"{path}: more than {MOST_UNPACKED:,} bytes unpacked; unpack it yourself")
        unpacked.seek(0)
        yield unpacked


def _rows_of(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of an Arrow batch; a cell that cannot be decoded becomes `Unreadable`."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError):  # bad UTF-8, a date that Python does not know
        columns = {name: [_cell(value) for value in batch.column(name)] for name in batch.schema.names}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return rows


def _cell(value: Any) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:
        return Unreadable(str(error))
