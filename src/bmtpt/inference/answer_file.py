"""Answers as a table: a CSV, JSON-lines or parquet file that has its name only once it is whole.

Until then it is NAME.partial, which a run that fails or is killed leaves behind.
"""

from __future__ import annotations

import csv
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from bmtpt.artifacts.folder import held
from bmtpt.errors import ArtifactError, BmtptError, DataError, SettingsError, cannot_write
from bmtpt.inference.rows import Asked

Row = Mapping[str, Any]
TableFormat = Literal["csv", "jsonl", "parquet"]

BLOCK = 1_024
"""Rows that are written at a time; the first of them show which columns a table has, and of which types."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet computes when it opens a CSV file (OWASP, CSV injection)."""


def json_line(row: Any) -> str:
    """Return a row as JSON: what JSON has no form for becomes text, and a number that is not finite null.

    Half a surrogate pair is written as its escape, so that the line can be encoded.
    """
    text = json.dumps(_plain(row), ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def spreadsheet_safe(cell: Any) -> Any:
    """Return a CSV cell that no spreadsheet computes: text that looks like a formula gets an apostrophe in front.

    >>> spreadsheet_safe("=HYPERLINK(A1)"), spreadsheet_safe("-1.5"), spreadsheet_safe("-")
    ("'=HYPERLINK(A1)", '-1.5', '-')
    """
    if not isinstance(cell, str) or len(cell) < 2 or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def require_table(path: Path, *, overwrite: bool = False) -> TableFormat:
    """Return the format of a file to write, by its ending.

    Raises:
        SettingsError: The ending is not known.
        ArtifactError: The file is there already and may not be overwritten, or its folder is missing.
    """
    ending = path.suffix.lower().removeprefix(".")
    if ending not in get_args(TableFormat):
        raise SettingsError(f"cannot write {path}: its ending must be .csv, .jsonl or .parquet")
    if os.path.isdir(path) or not os.path.isdir(path.parent):
        raise ArtifactError(f"cannot write {path}: it is a folder, or its own folder is missing; choose another file")
    if os.path.exists(path) and not overwrite:
        raise ArtifactError(f"{path} is there already; overwrite it, or choose another file")
    return ending  # type: ignore[return-value]


class Table:
    """A table that is being written, a block at a time.

    Attributes:
        kind: Its format.
        rows: How many were added.
    """

    def __init__(self, path: Path, kind: TableFormat) -> None:
        self.kind = kind
        self.rows = 0
        self._block: list[Row] = []
        self._writer: _Writer = _WRITERS[kind](path)

    def add(self, row: Row) -> None:
        """Add a row; raise a DataError if it does not fit the table's columns."""
        self._block.append(row)
        self.rows += 1
        if len(self._block) == BLOCK:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        if self._block:
            waiting, self._block = self._block, []
            self._writer.write(waiting)

    def close(self) -> None:
        """Write the rows that wait and end the file."""
        try:
            self.flush()
        finally:
            self._writer.close()


@contextmanager
def written_table(path: Path, *, overwrite: bool = False) -> Iterator[Table]:
    """Give a table to fill, which gets its name when the work ends well; else ``PATH.partial`` holds what there is.

    Raises:
        ArtifactError: The file cannot be written, is there already, or another process is writing it.
        SettingsError: The ending is not known.
    """
    kind = require_table(path, overwrite=overwrite)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        with held(partial):
            table = Table(partial, kind)
            try:
                yield table
            except BmtptError as error:
                table.close()
                if not table.rows:
                    partial.unlink()
                    raise
                raise type(error)(f"{error}; the rows before it ({table.rows:,}) are in {partial}") from error
            except BaseException:
                table.close()
                raise
            table.close()
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ArtifactError(cannot_write(path, error)) from error


def write_table(path: Path, rows: Iterable[Row], *, overwrite: bool = False) -> None:
    """Write all rows of a table. Raises as `written_table`."""
    with written_table(path, overwrite=overwrite) as table:
        for row in rows:
            table.add(row)


class _Writer(ABC):
    """Writes blocks of rows into a file; its columns and their types are those of the first block."""

    @abstractmethod
    def __init__(self, path: Path) -> None: ...

    @abstractmethod
    def write(self, rows: Sequence[Row]) -> None:
        """Write some rows; raise a DataError if one of them does not fit."""

    @abstractmethod
    def close(self) -> None:
        """End the file."""


class _JsonLines(_Writer):
    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8")

    def write(self, rows: Sequence[Row]) -> None:
        self.file.write("".join(json_line(row) + "\n" for row in rows))

    def close(self) -> None:
        self.file.close()


class _Csv(_Writer):
    columns: Sequence[str] = ()

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        self.writer = csv.writer(self.file)  # RFC 4180; with "\\n" as line end a "\\r" in a cell would not be quoted

    def write(self, rows: Sequence[Row]) -> None:
        if not self.columns:
            self.columns = _columns(rows)
            self.writer.writerow(map(spreadsheet_safe, self.columns))
        _require_columns(rows, self.columns)
        self.writer.writerows([self._cell(row.get(column)) for column in self.columns] for row in rows)

    @staticmethod
    def _cell(value: Any) -> Any:
        return spreadsheet_safe(json_line(value) if isinstance(value, (Mapping, list, tuple)) else value)

    def close(self) -> None:
        self.file.close()


class _Parquet(_Writer):
    def __init__(self, path: Path) -> None:
        import pyarrow as arrow  # type: ignore[import-untyped]

        self.path = path
        self.schema = arrow.schema([])
        self.writer: Any = None

    def write(self, rows: Sequence[Row]) -> None:
        import pyarrow as arrow
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]

        try:
            if self.writer is None:
                columns = _columns(rows)
                found = arrow.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows]).schema
                unknown = arrow.types.is_null  # of a column that is empty so far
                fields = [arrow.field(f.name, arrow.string() if unknown(f.type) else f.type) for f in found]
                self.schema = arrow.schema(fields)
                self.writer = parquet.ParquetWriter(self.path, self.schema)
            _require_columns(rows, self.schema.names)
            self.writer.write_table(arrow.Table.from_pylist(list(rows), self.schema))
        except (arrow.ArrowException, UnicodeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"a value does not fit its parquet column ({reason}); write .jsonl instead") from error

    def close(self) -> None:
        import pyarrow.parquet as parquet

        if self.writer is None:  # no rows, and a file all the same
            self.writer = parquet.ParquetWriter(self.path, self.schema)
        self.writer.close()


_WRITERS: dict[TableFormat, type[_Writer]] = {"csv": _Csv, "jsonl": _JsonLines, "parquet": _Parquet}


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _require_columns(rows: Sequence[Row], columns: Sequence[str]) -> None:
    known = set(columns)
    for row in rows:
        if not known.issuperset(row):
            new = next(column for column in row if column not in known)
            raise DataError(f"a row has a column '{new}' that none of the first {BLOCK:,} has; write .jsonl instead")


# Answers as rows


def answer_line(row: Asked, answer: Row | DataError, *, several: bool) -> dict[str, Any]:
    """Return an answer (`bmtpt.inference.predict.answered`) as an object, with the row's columns in ``row``.

    Args:
        several: Whether rows are of several tasks: the object then begins with ``task``.
    """
    found = {"error": str(answer)} if isinstance(answer, DataError) else dict(answer)
    columns = {"row": dict(row.columns)} if row.columns else {}
    return {**({"task": row.task} if several else {}), **found, **columns}


def answer_row(row: Asked, answer: Row | DataError, words: Sequence[str]) -> dict[str, Any]:
    """Return the row of a table: the input's columns (of a plain text its text), then the answer's.

    They are ``prediction``, ``probability``, ``p(WORD)`` for each of the label words, whether text and answer were cut,
    and ``error``, which says what is wrong with the row.

    Raises:
        SettingsError: The input has one of these columns already.
    """
    found: Row = {} if isinstance(answer, DataError) else answer
    shares = found.get("all", {})
    added = {
        "prediction": found.get("label"),
        "probability": found.get("probability"),
        **{f"p({word})": shares.get(word) for word in words},
        "text_cut": found.get("cut", False),
        "answer_cut": found.get("answer_cut", False),
        "error": str(answer) if isinstance(answer, DataError) else None,
    }
    if taken := next((name for name in added if name in row.columns), None):
        raise SettingsError(f"{row.where}: the input has a column '{taken}', which the answers need; rename it")
    return {**(row.columns or {"text": found.get("text")}), **added}
