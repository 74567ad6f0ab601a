"""Turn rows into text, in T5's style: ``"<task> <field>: text <field>: text …"`` answered with a word.

Only the context is ever cut; the question, the fields around it and the label stay whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bmtpt.errors import DataError, described, shortened
from bmtpt.tasks.layout import label_key
from bmtpt.tasks.prepare import prepared
from bmtpt.tasks.sources import Row, is_missing, scalar, value
from bmtpt.tasks.spec import TaskSpec, pieces
from bmtpt.types import Example


def word_index(spec: TaskSpec) -> dict[str, int]:
    """Return the position of each label word."""
    return {word: i for i, word in enumerate(spec.label_words)}


def to_examples(spec: TaskSpec, row: Row, *, training: bool, index: Mapping[str, int] | None = None) -> list[Example]:
    """Turn one raw row into examples: usually one; none if the row is dropped; one per answer for ReCoRD.

    ``index`` is the task's `word_index`, for many rows in a row.
    """
    examples = []
    for shown in prepared(spec.prepare, row, training) if spec.prepare else [row]:
        before, context, after = render(spec, shown)
        target, label, references = answer(spec, shown, word_index(spec) if index is None else index)
        group = str(value(shown, spec.group)) if spec.group else ""
        examples.append(Example(before, context, after, target, label, references, group))
    return examples


def merge(spec: TaskSpec, examples: Iterable[Example]) -> list[Example]:
    """Keep one example per group of ReCoRD, with all its answers: some copies list a query once per answer."""
    if spec.prepare != "record":
        return list(examples)
    merged: dict[str, Example] = {}
    for example in examples:
        first = merged.get(example.group, example)
        merged[example.group] = replace(first, references=tuple(dict.fromkeys(first.references + example.references)))
    return list(merged.values())


def render(spec: TaskSpec, row: Row) -> tuple[str, str, str]:
    """Fill the template and split it into text before the context, the context, and text after it."""
    before, context, after = "", "", ""
    for literal, column in pieces(spec.text):
        shown = "" if column is None else _text(row, column)
        if column and column == spec.context:
            before, context, after = after + literal, shown, ""
        else:
            after += literal + shown
    return (before, context, after) if spec.context else (after, "", "")


def own_text(spec: TaskSpec, example: Example) -> str:
    """Return what a row brings to its text: the columns, one a line, without the template's words.

    A column that itself holds the words that follow it in the template is divided there; no word of it is lost.

    >>> spec = TaskSpec(name="t", text="t a: {a} b: {b} OPTIONS: - x - y", label="y", labels=["x", "y"])
    >>> own_text(spec, Example("t a: one two b: three OPTIONS: - x - y", "", "", target="x")).splitlines()
    ['one two', 'three']
    """
    columns, rest = [], example.text
    for literal in (literal for literal, _ in pieces(spec.text) if literal):
        column, _, rest = rest.partition(literal)
        columns.append(column)
    return "\n".join(column for column in (*columns, rest) if column)


def own_texts(spec: TaskSpec, examples: Iterable[Example]) -> list[str]:
    """Return `own_text` of each row."""
    return [own_text(spec, example) for example in examples]


def answer(spec: TaskSpec, row: Row, index: Mapping[str, int]) -> tuple[str, int | None, tuple[str, ...]]:
    """Return target text, label index and accepted answers of a row."""
    if spec.kind == "number":
        target = rounded(value(row, spec.label), spec.steps or 1)
        return target, None, (target,)
    if spec.kind == "answers":
        accepted = accepted_answers(value(row, spec.answers))
        return accepted[0], None, accepted
    word = label_word(spec, row)
    target = "".join(literal + (_text(row, column) if column else "") for literal, column in pieces(word))
    return target, index[word], (target,)


def rounded(raw: Any, steps: int) -> str:
    """Round a number to 1/steps, with one decimal: STS-B is ``round(5·x)/5`` (Raffel et al. 2020, 2.3).

    >>> rounded(2.57, 5)
    '2.6'
    """
    try:
        number = float(raw) * steps
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"'{shortened(raw)}' is not a number")
    return f"{round(number) / steps + 0.0:.1f}"


def accepted_answers(raw: Any) -> tuple[str, ...]:
    """Return the different answers in a text, a list of texts, or SQuAD's ``{"text": [...]}``.

    >>> accepted_answers({"text": ["gold", "gold", "the gold"]})
    ('gold', 'the gold')
    """
    texts = raw.get("text", []) if isinstance(raw, dict) else raw
    texts = texts if isinstance(texts, (list, tuple)) else [texts]
    if odd := [text for text in texts if isinstance(text, (dict, list, tuple))]:
        raise DataError(f"an answer is {described(odd[0])}, not a text")
    kept = (str(text).strip() for text in texts if not is_missing(text))
    accepted = tuple(dict.fromkeys(filter(None, kept)))
    if not accepted:
        raise DataError("the row has no answer")
    return accepted


def raw_label(row: Row, column: str) -> str:
    """Return the label in a column as text; raise a DataError if it is missing, empty or no label."""
    if not (key := label_key(scalar(row, column, "label"))):
        raise DataError(f"column '{column}' is empty")
    return key


def label_word(spec: TaskSpec, row: Row) -> str:
    """Return the word of a row's label."""
    key = raw_label(row, spec.label)
    if key not in spec.labels:
        known = shortened(", ".join(spec.labels), 80)
        raise DataError(
            f"label '{shortened(key)}' is not one of the task's labels ({known}); add it to 'labels' or fix the row"
        )
    return spec.labels[key]


def _text(row: Row, column: str) -> str:
    return str(scalar(row, column)).strip()
