"""A task made of a user's own rows: in memory, or in a file that a path names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bmtpt.errors import DataError, TaskError
from bmtpt.tasks.rows import OwnRows
from bmtpt.tasks.sources import Rows, from_memory, value
from bmtpt.tasks.spec import PARTS, TaskSpec, first_problem
from bmtpt.tasks.text import label_key

MANY_LABELS = 20
"""More labels than this, most of them on one row only, are taken for free answers."""


def own_task(rows: Any, keys: Mapping[str, Any]) -> tuple[TaskSpec, OwnRows]:
    """Return the task of some rows, and the rows.

    Args:
        rows: One table (DataFrame, list of dicts, `datasets.Dataset` or path), or tables by part.
        keys: Keys of `TaskSpec` that are set. Labels are taken from the rows unless `labels`, `answers` or `steps` says
            what an answer is; the name is that of the file or of the answer's column unless it is given.

    Raises:
        TypeError: Rows are of another kind.
        TaskError, DataError: A key or a row is wrong.
    """
    tables = _tables(rows)
    keys = dict(keys)
    answer = str(keys.get("answers") or keys.get("label", "label"))
    named = Path(rows).stem if isinstance(rows, (str, Path)) else answer
    keys.setdefault("name", re.sub(r"[^\w.-]+|^[^A-Za-z0-9]+", "-", named).strip("-") or "task")
    labels = keys.get("labels")
    if isinstance(labels, Mapping):
        keys["labels"] = {label_key(raw): str(word) for raw, word in labels.items()}
    elif isinstance(labels, (list, tuple)):
        keys["labels"] = [label_key(word) for word in labels]
    elif labels is None and not keys.get("answers") and not keys.get("steps"):
        keys["labels"] = labels_of(tables.values() if isinstance(tables, dict) else [tables], answer)
    if isinstance(tables, Rows) and not keys.get("split_column"):
        keys.setdefault("split", "stratify")
    try:
        return TaskSpec.model_validate(keys), tables
    except ValidationError as error:
        raise TaskError(f"task '{keys['name']}': {first_problem(error)}") from error


def _tables(rows: Any) -> Rows | dict[Any, Rows]:
    if not isinstance(rows, Mapping):
        return from_memory(rows)
    if not rows or set(rows) - set(PARTS):
        raise TypeError(f"rows by part are a dict with keys among {', '.join(PARTS)}, not {', '.join(map(repr, rows))}")
    return {part: from_memory(each) for part, each in rows.items()}


def labels_of(tables: Iterable[Rows], column: str) -> list[str]:
    """Return the different labels in a column, sorted as text.

    Raises:
        DataError: A row has no label (the sentence names it), or the column does not hold labels.
    """
    found: set[str] = set()
    count, fraction = 0, ""
    for table in tables:
        for i, row in enumerate(table.fetch(range(len(table)))):
            try:
                raw = value(row, column)
            except DataError as error:
                raise DataError(f"{table.place(i)}: {error}") from error
            key = label_key(raw)
            if not key:
                raise DataError(f"{table.place(i)}: column '{column}' is empty")
            fraction = key if isinstance(raw, float) and not raw.is_integer() else fraction
            found.add(key)
            count += 1
    if fraction:
        raise DataError(f"column '{column}' holds numbers such as {fraction}; give 'steps' to predict numbers")
    if len(found) > MANY_LABELS and 2 * len(found) > count:
        raise DataError(
            f"column '{column}' holds {len(found)} different labels in {count} rows; give answers='{column}' if it "
            "holds free answers"
        )
    if len(found) < 2:
        held = f"one label only ('{found.pop()}')" if found else "no rows"
        raise DataError(f"column '{column}' holds {held}; a task needs two labels or more")
    return sorted(found)
