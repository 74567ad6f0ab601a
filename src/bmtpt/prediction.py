"""Answer new texts with a prompt: through the same templates and the same forward path as training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bmtpt.artifacts import Prompt, require_backbone
from bmtpt.backbone.choose import choose_engine
from bmtpt.backbone.engine import Engine
from bmtpt.backbone.model import Backbone
from bmtpt.data import tokenise
from bmtpt.errors import DataError
from bmtpt.scoring import label_probabilities, make_scorer
from bmtpt.tasks import TaskSpec
from bmtpt.tasks.prepare import PREPARE
from bmtpt.tasks.spec import placeholders
from bmtpt.tasks.text import render
from bmtpt.types import Example

BATCH = 64
"""Rows answered at a time, so that answers stream while a long input is still being read."""

ANSWER_TOKENS = 32
"""Longest free answer."""


def read_rows(lines: Iterable[str], task: TaskSpec, source: str = "input") -> Iterator[Example]:
    """Turn lines into examples: JSON objects with the task's columns, or plain text if the task has one column.

    Raises:
        DataError: A line is not JSON, or lacks a column; the sentence names the line.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _columns(line, number, task, source)
        try:
            shown = PREPARE[task.prepare](row, False)[0] if task.prepare else row
            before, context, after = render(task, shown)
        except DataError as error:
            raise DataError(f"{source}, line {number}: {error}") from error
        yield Example(before, context, after, target="")


def _columns(line: str, number: int, task: TaskSpec, source: str) -> dict[str, Any]:
    if line.lstrip().startswith("{"):
        try:
            row = json.loads(line)
        except ValueError as error:
            reason = getattr(error, "msg", error)
            raise DataError(f"{source}, line {number} is not valid JSON ({reason})") from error
        return dict(row)
    columns = placeholders(task.text)
    if len(columns) != 1:
        needed = ", ".join(columns)
        raise DataError(f"{source}, line {number}: task {task.name} needs JSON lines with the columns {needed}")
    return {columns[0]: line.rstrip("\n")}


def predict(backbone: Backbone, prompt: Prompt, examples: Iterable[Example]) -> Iterator[dict[str, Any]]:
    """Yield one answer per example, in order: ``text``, ``label`` and, for label words, ``probability`` and ``all``.

    An answer to a text that was cut to the prompt's length limit also has ``cut``: true.
    The probabilities of an ensemble's prompts are averaged. They are softmax shares over the label words and
    tend to be overconfident (METHOD.md, golden facts).

    Raises:
        BackboneError: The prompt belongs to another model.
    """
    require_backbone(prompt.card.backbone, backbone.fingerprint, backbone.name)
    task = TaskSpec.model_validate(prompt.card.task_definition)
    engine = choose_engine(backbone)
    waiting: list[Example] = []
    for example in examples:
        waiting.append(example)
        if len(waiting) == BATCH:
            yield from _answer(backbone, engine, prompt, task, waiting)
            waiting = []
    if waiting:
        yield from _answer(backbone, engine, prompt, task, waiting)


def _answer(
    backbone: Backbone, engine: Engine, prompt: Prompt, task: TaskSpec, examples: Sequence[Example]
) -> Iterator[dict[str, Any]]:
    limit = prompt.card.settings.get("max_length") or task.max_length
    rows = [tokenise(backbone, [example], limit) for example in examples]
    inputs = [row.batch.inputs[0] for row in rows]
    facts = [{"cut": True} if row.cut else {} for row in rows]
    prompts = prompt.prompts.to(backbone.device)
    if not task.fixed_words:
        texts = engine.generate(prompts[:1], inputs, max_new_tokens=ANSWER_TOKENS)[0]
        found = zip(examples, texts, facts, strict=True)
        yield from ({"text": example.text, "label": answer, **more} for example, answer, more in found)
        return
    probabilities = label_probabilities(engine, prompts, inputs, make_scorer(backbone, task).answers)
    for example, row, more in zip(examples, probabilities.tolist(), facts, strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        shares = dict(zip(task.label_words, row, strict=True))
        yield {"text": example.text, "label": task.label_words[best], "probability": row[best], "all": shares, **more}
