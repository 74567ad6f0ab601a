"""Read CSV and TSV: a quote that is not closed and a row of another width are errors with their line."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, TextIO

from bmtpt.errors import DataError, shortened
from bmtpt.tasks.layout import MOST_CHARACTERS, FileRow, Quoting, distinct, lines_of, place, with_needed

log = logging.getLogger("bmtpt")


def delimited(file: TextIO, path: Path, delimiter: str, quoting: Quoting, needed: Collection[str]) -> Iterator[FileRow]:
    csv.field_size_limit(MOST_CHARACTERS)  # of the whole process; the default, 131,072, is less than a long document
    held = io.StringIO()
    quotes: Literal[0, 3] = csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL
    reader = csv.reader(_holding(lines_of(file, path), held), delimiter=delimiter, quoting=quotes, strict=True)
    try:
        header = _header(next(filter(None, reader), []), path, delimiter, needed)
    except csv.Error as error:
        raise _csv_fault(error, held, 1, path, delimiter) from error
    merged = False
    while True:
        start = reader.line_num + 1
        held.seek(0)
        held.truncate()
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield FileRow(start, _csv_fault(error, held, start, path, delimiter))
            continue
        if values is None:
            return
        if not values:
            continue
        lines = reader.line_num + 1 - start
        if lines > 2 and not merged and any(_holds_rows(cell, delimiter, len(header)) for cell in values):
            merged = True
            log.warning(
                "%s: a quoted value spans %d lines that look like rows; is a quote unclosed?",
                place(path, start),
                lines,
            )
        if len(values) != len(header):
            counts = f"{len(values)} values, but the header has {len(header)}"
            yield FileRow(start, DataError(f"{place(path, start)}: {counts}; quote values that hold the separator"))
        else:
            yield FileRow(start, dict(zip(header, values, strict=True)))


def _holding(lines: Iterator[str], held: io.StringIO) -> Iterator[str]:
    """Yield lines and hold their text, in which an error is located."""
    for line in lines:
        held.write(line)
        yield line


def _header(names: list[str], path: Path, delimiter: str, needed: Collection[str]) -> list[str]:
    header = distinct((name.strip() for name in names), path)
    if header and re.fullmatch("sep=.?", header[0]):
        raise DataError(f"{path}: the first line, '{header[0]}', is for Excel alone; remove it")
    missing = set(needed).difference(header)
    for other in ",;\t|".replace(delimiter, ""):
        columns = [name.strip() for name in delimiter.join(header).split(other)]
        if missing.issubset(columns) if missing else len(header) == 1 < len(columns) and not needed:
            shown = "\\t" if other == "\t" else other
            said = shortened(delimiter.join(header))
            cure = f"if '{shown}' separates the columns, give the task 'delimiter: \"{shown}\"'"
            raise DataError(f"{path}: the header is '{said}'; {cure}")
    return with_needed(header, needed, path) if header else header


def _csv_fault(error: csv.Error, held: io.StringIO, start: int, path: Path, delimiter: str) -> DataError:
    where = place(path, start + _open_quote(held.getvalue(), delimiter))
    if "field limit" in str(error):
        return DataError(f"{where}: a value has more than {MOST_CHARACTERS:,} characters; close its quote, or cut it")
    return DataError(
        f"{where}: the quote that opens here is not closed at the end of its value; close it, double the quotes inside "
        "it, or give the task 'quoting: none' if quotes are plain text"
    )


def _open_quote(record: str, delimiter: str) -> int:
    """Return on which line of a record, from 0, the quote opens that is not closed at the end of its value.

    >>> _open_quote('a,"b\\nc",d\\ne,"f\\n', ",")
    2
    """
    ends = (delimiter, "\r", "\n", "")
    at = 0
    while at < len(record):
        if record[at] == '"':
            closed = re.compile(r'"[^"]*(?:""[^"]*)*"').match(record, at)
            if closed is None or record[closed.end() : closed.end() + 1] not in ends:
                break
            at = closed.end()
        else:
            at = next((i for i in range(at, len(record)) if record[i] in ends), len(record))
        at += 1
    return len(re.findall(r"\r\n|\r|\n", record[:at]))


def _holds_rows(cell: str, delimiter: str, width: int) -> bool:
    """Tell whether a cell of several lines holds two that look like rows: as many delimiters, none before a blank."""
    if "\n" not in cell or width < 2:
        return False
    between = re.compile(re.escape(delimiter) + r"(?!\s)")
    return sum(line.count(delimiter) == len(between.findall(line)) == width - 1 for line in cell.splitlines()[1:]) >= 2
