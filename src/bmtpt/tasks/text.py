"""Turn rows into text, in T5's style: ``"<task> <field>: text <field>: text …"`` answered with a word.

Only the context is ever cut; the question, the fields around it and the label stay whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from bmtpt.errors import DataError
from bmtpt.tasks.prepare import prepared
from bmtpt.tasks.sources import Row, value
from bmtpt.tasks.spec import TaskSpec, pieces
from bmtpt.types import Example


def to_examples(spec: TaskSpec, row: Row, *, training: bool) -> list[Example]:
    """Turn one raw row into examples: usually one; none if the row is dropped; one per answer for ReCoRD."""
    examples = []
    for shown in prepared(spec.prepare, row, training) if spec.prepare else [row]:
        before, context, after = render(spec, shown)
        target, label, references = answer(spec, shown)
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


def answer(spec: TaskSpec, row: Row) -> tuple[str, int | None, tuple[str, ...]]:
    """Return target text, label index and accepted answers of a row."""
    if spec.kind == "number":
        target = rounded(value(row, spec.label), spec.steps or 1)
        return target, None, (target,)
    if spec.kind == "answers":
        accepted = accepted_answers(value(row, spec.answers))
        return accepted[0], None, accepted
    word = label_word(spec, value(row, spec.label))
    target = "".join(literal + (_text(row, column) if column else "") for literal, column in pieces(word))
    return target, spec.label_words.index(word), (target,)


def rounded(raw: Any, steps: int) -> str:
    """Round a number to 1/steps, with one decimal: STS-B is ``round(5·x)/5`` (Raffel et al. 2020, 2.3).

    >>> rounded(2.57, 5)
    '2.6'
    """
    try:
        number = float(raw)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"'{raw}' is not a number")
    return f"{round(number * steps) / steps + 0.0:.1f}"


def accepted_answers(raw: Any) -> tuple[str, ...]:
    """Return the different answers in a text, a list of texts, or SQuAD's ``{"text": [...]}``.

    >>> accepted_answers({"text": ["gold", "gold", "the gold"]})
    ('gold', 'the gold')
    """
    texts = raw.get("text", []) if isinstance(raw, dict) else raw
    texts = texts if isinstance(texts, (list, tuple)) else [texts]
    accepted = tuple(dict.fromkeys(str(text).strip() for text in texts if str(text).strip()))
    if not accepted:
        raise DataError("the row has no answer")
    return accepted


def label_word(spec: TaskSpec, raw: Any) -> str:
    """Return the label word of a raw label."""
    key = label_key(raw)
    if key not in spec.labels:
        known = ", ".join(spec.labels)
        raise DataError(f"label '{key}' is not one of the task's labels ({known}); add it to 'labels' or fix the row")
    return spec.labels[key]


def label_key(raw: Any) -> str:
    """Return a raw label as text, the same for ``1``, ``1.0`` and ``"1"``, and for ``True`` and ``"true"``.

    >>> [label_key(raw) for raw in (1, 1.0, "1 ", True, 2.5)]
    ['1', '1', '1', 'true', '2.5']
    """
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, float) and raw.is_integer():
        return str(int(raw))
    return str(raw).strip()


def _text(row: Row, column: str) -> str:
    return str(value(row, column)).strip()
