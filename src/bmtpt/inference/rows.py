"""What is to be answered: rows of files, lines of a stream, objects in memory.

A stream has no ending, so its first line decides: if it is a JSON object every line must be one, otherwise every line
is a text. A task of several columns, and several tasks, take JSON objects in any case.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from bmtpt.errors import DataError, SettingsError, cannot_read, described, nearest
from bmtpt.tasks import TaskSpec
from bmtpt.tasks.delimited import delimited
from bmtpt.tasks.files import PLAIN, json_row, read_rows
from bmtpt.tasks.layout import ENDINGS, Layout, kind_of, lines_of, place
from bmtpt.tasks.prepare import prepared
from bmtpt.tasks.sources import from_memory
from bmtpt.tasks.spec import placeholders
from bmtpt.tasks.text import render
from bmtpt.types import Example, StreamFormat

log = logging.getLogger("bmtpt")

DELIMITERS: dict[StreamFormat | None, str] = {"csv": ",", "tsv": "\t"}

Tasks = Mapping[str, TaskSpec]
"""The tasks that rows may be of, by name; with several, each row names its own in the column ``task``."""


class Asked(NamedTuple):
    """A row to answer.

    Attributes:
        where: Its place, for messages.
        task: Whose it is.
        example: The row as a text, or what is wrong with it; the sentence begins with the place.
        columns: The row as it came; empty for plain text.
    """

    where: str
    task: str
    example: Example | DataError
    columns: Mapping[str, Any] = {}


def file_rows(path: Path, tasks: Tasks, form: StreamFormat | None = None) -> Iterator[Asked]:
    """Return the rows of a file by its ending: those of a table, JSON objects, or the lines of a .txt file.

    Args:
        form: What the file holds, whatever its ending; None goes by the ending, and of a pipe by the first line.

    Raises:
        DataError: The file cannot be read at all, or its ending is not known.
        SettingsError: As `stream_rows`.
    """
    if not os.path.exists(path):  # unlike Path.exists, never raises
        raise DataError(f"there is no file {path}; check its path")
    is_pipe = path.is_relative_to("/dev") or not (path.is_file() or path.is_dir())
    form = form or (None if is_pipe else _form_by_ending(path))
    if is_pipe or form:
        return _lines_of_file(path, tasks, form)
    return (_asked(row, place(path, number), tasks) for number, row in read_rows(path, _layout(tasks)))


def _layout(tasks: Tasks) -> Layout:
    """Return how a text to answer is written: as the files of its one task are."""
    return next(iter(tasks.values())) if len(tasks) == 1 else PLAIN


def _lines_of_file(path: Path, tasks: Tasks, form: StreamFormat | None) -> Iterator[Asked]:
    try:
        with path.open("rb") as file:
            yield from stream_rows(file, tasks, form, str(path))
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error


def _form_by_ending(path: Path) -> StreamFormat | None:
    """Return "text" for a .txt file and None for a file of rows; raise a DataError for other endings."""
    if path.name.lower().endswith(".txt"):
        return "text"
    try:
        kind_of(path)
    except DataError as error:
        known = ", ".join(f".{ending}" for ending in ENDINGS)
        raise DataError(
            f"{path}: the ending is none of .txt, {known} (also .gz); rename the file or say --format"
        ) from error
    return None


def stream_rows(
    stream: BinaryIO, tasks: Tasks, form: StreamFormat | None = None, name: str = "standard input"
) -> Iterator[Asked]:
    """Yield the rows of a stream; a byte that is not of its encoding (the task's, or UTF-8) makes its row wrong.

    Args:
        form: What the stream holds; None lets the first line decide between texts and JSON objects.
        name: Of the stream, for messages.

    Raises:
        DataError: Nothing is said of the form, and the first line looks like the header of a table.
        SettingsError: Texts are asked for, and they cannot fill the task's columns or name their tasks.
    """
    columns = sorted({column for task in tasks.values() for column in placeholders(task.text)})
    layout = _layout(tasks)
    encoding = "utf-8-sig" if layout.encoding == PLAIN.encoding else layout.encoding
    text = io.TextIOWrapper(stream, encoding, "surrogateescape", newline="" if form in DELIMITERS else "\n")
    if form in DELIMITERS:
        delimiter = layout.delimiter or DELIMITERS[form]
        for number, row in delimited(text, Path(name), delimiter, layout.quoting, ()):
            yield _asked(row, f"{name}, line {number}", tasks)
        return
    only_rows = len(tasks) > 1 or len(columns) > 1
    if form == "text" and only_rows:
        needed = "its task" if len(tasks) > 1 else f"the columns {', '.join(columns)}"
        raise SettingsError(f"{name}: a line of text cannot give {needed}; give rows as JSON lines or a table")
    numbered = _numbered(text, name)
    for number, line in numbered:  # the first
        decided = form or ("jsonl" if only_rows else _form_by_line(line, f"{name}, line {number}", columns[0]))
        for each, following in chain([(number, line)], numbered):
            yield _of_line(following, f"{name}, line {each}", tasks, decided, by_line=form is None)


def _numbered(text: TextIO, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, each with its number."""
    for number, line in enumerate(lines_of(text, Path(name)), start=1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _form_by_line(line: str, where: str, column: str) -> StreamFormat:
    """Return what the lines of a stream are, by the first of them.

    Raises:
        DataError: It is the header of a table, by the name of the task's column in it.
    """
    found = json_row(line, where)
    if isinstance(found, dict):
        return "jsonl"
    for form, delimiter in DELIMITERS.items():
        if column in [cell.strip(' "') for cell in line.split(delimiter)]:
            raise DataError(
                f"{where} names the column '{column}' as the header of a table does; say --format {form}, or text "
                "if it is one"
            )
    if line.lstrip().startswith("{"):
        log.warning("%s; its lines are taken for texts (--format jsonl says that they are rows)", found)
    return "text"


def _of_line(line: str, where: str, tasks: Tasks, form: StreamFormat, *, by_line: bool) -> Asked:
    """Return the row of a line; ``by_line`` says that the first line decided what lines are."""
    if form == "jsonl":
        return _asked(json_row(line, where), where, tasks)
    ((name, task),) = tasks.items()
    if by_line and line.lstrip().startswith("{") and isinstance(json_row(line, where), dict):
        wrong = DataError(f"{where}: this is a JSON object, and the first line is a text; give --format")
        return Asked(where, name, wrong)
    try:
        return Asked(where, name, as_example(line, where, task))
    except DataError as error:
        return Asked(where, name, error)


def _asked(row: dict[str, Any] | DataError, where: str, tasks: Tasks) -> Asked:
    """Return a row as an example of its task."""
    name = next(iter(tasks)) if len(tasks) == 1 else ""
    if isinstance(row, DataError):
        return Asked(where, name, row)
    if len(tasks) > 1:
        if "task" not in row:
            known = ", ".join(sorted(tasks))
            problem = f"{where} has no field 'task'; with several prompts it names one of {known}"
            return Asked(where, name, DataError(problem), row)
        found = row["task"]
        if found not in list(tasks):  # a value that is not text may not be hashable
            problem = f"{where}: no prompt is given for task {found!r}; {nearest(str(found), tasks)}"
            return Asked(where, name, DataError(problem), row)
        name = found
    try:
        return Asked(where, name, as_example(row, where, tasks[name]), row)
    except DataError as error:
        return Asked(where, name, error, row)


# Objects in memory


def is_one(texts: Any, task: TaskSpec) -> bool:
    """Tell whether a text or a row (a dict, or a row of a DataFrame) is given, rather than several."""
    row = hasattr(texts, "items") and set(placeholders(task.text)) <= set(getattr(texts, "index", ()))
    return isinstance(texts, (str, Mapping)) or row


def examples_of(texts: Any, task: TaskSpec) -> list[Example]:
    """Turn one text or row (a dict), or a list, DataFrame, `datasets.Dataset` or Series of them, into examples.

    Raises:
        DataError: A row lacks a column, or a text comes where the task needs several columns.
        TypeError: It is of another kind.
    """
    if isinstance(texts, (set, frozenset)):
        raise TypeError("predict answers in order, and a set has none; give a list")
    if is_one(texts, task):
        return [as_example(texts if isinstance(texts, str) else dict(texts), "the text", task)]
    if hasattr(texts, "columns") or hasattr(texts, "column_names"):
        rows = from_memory(texts)
        texts = rows.fetch(range(len(rows)))
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"predict takes a text, a dict with a row, or a list of them, not {described(texts)}")
    return [as_example(text, f"text {number}", task) for number, text in enumerate(texts, start=1)]


def as_example(row: Any, where: str, task: TaskSpec) -> Example:
    """Turn a row, or the text of a task with one column, into an example without an answer.

    Raises:
        DataError: The row lacks a column or holds what is no text; the sentence begins with ``where``.
        TypeError: It is neither.
    """
    if not isinstance(row, (str, Mapping)):
        raise TypeError(f"{where} is {described(row)}; give a text, or a dict with the columns of the task")
    if isinstance(row, str):
        columns = placeholders(task.text)
        if len(columns) != 1:
            raise DataError(f"{where}: task {task.name} needs rows with the columns {', '.join(columns)}")
        row = {columns[0]: row}
    try:
        shown = prepared(task.prepare, row, training=False)[0] if task.prepare else row
        before, context, after = render(task, shown)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return Example(before, context, after, target="")
