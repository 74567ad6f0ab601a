"""Data sets whose rows need code before they fit a template.

Each function takes a raw row and whether it is for training, and returns the rows that the template gets.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from bmtpt.errors import DataError
from bmtpt.tasks.sources import Row, value
from bmtpt.tasks.spec import Prepare

HIGHLIGHT_AFTER_STOP = re.compile(r"([.?!\"'])\n@highlight\n")


def multirc(row: Row, training: bool) -> list[dict[str, Any]]:
    """Remove HTML as T5's preprocessing does, and name the question; blank answers are not trained on."""
    raw = {key: re.sub(r"<br\s*/?>", " ", str(value(row, key))) for key in ("paragraph", "question", "answer")}
    shown = {key: re.sub(r"</?b>", "", text) for key, text in raw.items()}
    if training and not shown["answer"].strip():
        return []
    index = row.get("idx")
    if isinstance(index, dict):
        group = f"{index['paragraph']}-{index['question']}"
    else:
        group = digest(shown["paragraph"], shown["question"])
    return [{**row, **shown, "group": group}]


def record(row: Row, training: bool) -> list[dict[str, Any]]:
    """Train on every answer once; evaluate each query once with all its answers (see `bmtpt.tasks.text.merge`)."""
    raw = str(value(row, "passage"))
    passage = HIGHLIGHT_AFTER_STOP.sub(r"\1 ", raw).replace("\n@highlight\n", ". ")
    entities = ", ".join(dict.fromkeys(value(row, "entities")))
    group = digest(raw, str(value(row, "query")))
    shown = {**row, "passage": passage, "entities": entities, "group": group}
    if not training:
        return [shown]
    return [{**shown, "answers": [answer]} for answer in dict.fromkeys(value(row, "answers"))]


def digest(*texts: str) -> str:
    """Name a group by its texts."""
    return hashlib.sha1("\n".join(texts).encode()).hexdigest()


def wsc(row: Row, training: bool) -> list[dict[str, Any]]:
    """Mark the noun as ``* noun *`` and the pronoun as ``# pronoun #`` in the text."""
    marks = {"1": "*", "2": "#"}
    spans = [(int(value(row, f"span{i}_index")), str(value(row, f"span{i}_text")), marks[i]) for i in marks]
    words = str(value(row, "text")).split(" ")
    for index, span, mark in sorted(spans, reverse=True):  # from the right, so earlier indices stay valid
        words = mark_span(words, index, span, mark)
    return [{**row, "text": " ".join(words)}]


def mark_span(words: list[str], index: int, span: str, mark: str) -> list[str]:
    """Put marks around a span that starts at word ``index``; punctuation stuck to its end stays outside.

    >>> mark_span(["for", "him."], 1, "him", "#")
    ['for', '#', 'him', '#.']
    """
    if not 0 <= index < len(words):
        raise DataError(f"'{span}' should be word {index} of a text of {len(words)} words")
    size = len(span.split())
    found = " ".join(words[index : index + size])
    # Some spans differ from the text in case ("the lawyer" for "The lawyer"); the text's form is kept.
    tail = found[len(span) :] if found.lower().startswith(span.lower()) else ""
    core = found.removesuffix(tail) if tail else found
    return [*words[:index], mark, *core.split(" "), mark + tail, *words[index + size :]]


def prepared(name: Prepare, row: Row, training: bool) -> list[dict[str, Any]]:
    """Return the rows to show of one raw row; raise a DataError if it is not like that data set's rows."""
    try:
        return PREPARE[name](row, training)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"the row does not look like a row of {name}: {type(error).__name__}: {error}") from error


PREPARE: dict[Prepare, Callable[[Row, bool], list[dict[str, Any]]]] = {
    "multirc": multirc,
    "record": record,
    "wsc": wsc,
}
