"""How rows lie in files: their place, their columns, and what a text file does not say of itself."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from pydantic import BaseModel, ConfigDict, field_validator

from bmtpt.errors import DataError, shortened

ENDINGS = ("parquet", "jsonl", "json", "csv", "tsv")
Quoting = Literal["minimal", "none"]

MOST_CHARACTERS = 2**24
"""Of a line, or of a quoted value."""


class Layout(BaseModel):
    """What a text file does not say of itself.

    Attributes:
        encoding: Python's name of the encoding; a byte order mark is skipped.
        delimiter: What separates the columns of a .csv or .tsv file; None means a comma or a tab, by the ending.
        quoting: ``minimal`` reads values in double quotes as CSV does, ``none`` takes quotes for text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoding: str = "utf-8"
    delimiter: str | None = None
    quoting: Quoting = "minimal"

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"there is no encoding '{encoding[:40]}'; give one such as latin-1, cp1252 or utf-16"
            ) from error
        return encoding

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str | None) -> str | None:
        delimiter = "\t" if delimiter in ("\\t", "tab") else delimiter
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError(f"'{delimiter[:40]}' cannot separate columns; give one character, such as ';', or tab")
        return delimiter


class FileRow(NamedTuple):
    """A row of a file, or the error that says what is wrong with it; ``number`` is its line, or its row from 1."""

    number: int
    row: dict[str, Any] | DataError


@dataclass(frozen=True)
class Unreadable:
    """A cell that cannot be decoded: no fault as long as it is not needed (`bmtpt.tasks.sources.value` refuses it)."""

    reason: str

    def __str__(self) -> str:
        return f"unreadable: {self.reason}"


def kind_of(path: Path) -> str:
    """Return the kind of a file by its ending, such as "csv" of ``ROWS.CSV.gz``; raise a DataError for others."""
    kind = _ending(path)
    if kind not in ENDINGS:
        raise DataError(f"{path}: rows are read from .csv, .tsv, .jsonl, .json or .parquet files (also .gz) only")
    return kind


def holds_rows(path: Path) -> bool:
    """Return whether a file is one of rows, by its ending."""
    return _ending(path) in ENDINGS


def _ending(path: Path) -> str:
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]


def unit_of(path: Path) -> Literal["line", "row"]:
    """Return what the rows of a file, or of a stream that has no ending, are counted in."""
    return "row" if _ending(path) in ("parquet", "json") else "line"


def place(path: Path, number: int) -> str:
    """Return where a row is, for messages."""
    return f"{path}, {unit_of(path)} {number}"


def distinct(names: Iterable[str], where: object, kind: str = "column") -> list[str]:
    """Return names; raise a DataError if one is there twice, of which only one could be read."""
    found = list(names)
    if twice := [name for name, count in Counter(found).items() if count > 1 and name]:
        count = found.count(twice[0])
        raise DataError(f"{where}: {kind} '{shortened(twice[0])}' is there {count} times; rename all but one")
    return found


def with_needed(columns: list[str], needed: Collection[str], where: object) -> list[str]:
    """Return the columns of a table; raise a DataError if one that is needed is not among them."""
    if missing := [name for name in needed if name not in columns]:
        columns_there = shortened(", ".join(columns), 120)
        raise DataError(f"{where}: there is no column '{shortened(missing[0])}'; the columns are {columns_there}")
    return columns


def label_key(raw: Any) -> str:
    """Return a raw label as text, the same from every kind of file: for 1, 1.0, ``"1"`` and ``"1.0"``; True and "TRUE".

    >>> [label_key(raw) for raw in (1, 1.0, "1 ", "1.0", True, "True", 2.5, "01")]
    ['1', '1', '1', '1', 'true', 'true', '2.5', '01']
    """
    key = str(int(raw) if isinstance(raw, float) and raw.is_integer() else raw).strip()
    if key in ("True", "TRUE", "False", "FALSE"):  # Python and pandas write the first, spreadsheets the second
        return key.lower()
    if key.isascii():
        whole = re.fullmatch(r"(-?(?:0|[1-9][0-9]*))\.0+", key)
        return ("0" if whole[1] == "-0" else whole[1]) if whole else key
    return unicodedata.normalize("NFC", key)


def lines_of(file: TextIO, path: Path) -> Iterator[str]:
    """Yield lines without a byte order mark; one without an end (a bomb) is refused before it fills the memory."""
    line = file.readline(MOST_CHARACTERS).removeprefix("\ufeff")  # which a codec such as utf-16-le leaves
    while line:
        if len(line) == MOST_CHARACTERS:
            raise DataError(
                f"{path}: a line has more than {MOST_CHARACTERS:,} characters; end each row with a line end"
            )
        yield line
        line = file.readline(MOST_CHARACTERS)
