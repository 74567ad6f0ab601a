"""Answer new texts through the same templates and the same forward path as training, many tasks in one batch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from bmtpt.artifacts.card import require_backbone
from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.backbone.engine import Query, Reply
from bmtpt.errors import ArtifactError, BackboneError, DataError, described, nearest
from bmtpt.inference.score import Scorer, make_scorer
from bmtpt.tasks import TaskSpec, saved_task
from bmtpt.tasks.prepare import prepared
from bmtpt.tasks.sources import from_memory
from bmtpt.tasks.spec import placeholders
from bmtpt.tasks.text import render
from bmtpt.tasks.tokens import tokenise_text
from bmtpt.types import Example

BATCH = 64
"""Rows answered at a time, so that answers stream while a long input is still being read."""


def read_rows(lines: Iterable[str], task: TaskSpec, source: str = "input") -> Iterator[Example]:
    """Turn lines into examples: JSON objects with the task's columns, or plain text if the task has one column.

    A line that is not JSON or lacks a column raises a DataError that names it.
    """
    for where, row in _parsed(lines, source):
        yield _example(row, where, task)


def read_task_rows(
    lines: Iterable[str], tasks: Mapping[str, TaskSpec], source: str = "input"
) -> Iterator[tuple[str, Example]]:
    """Turn lines of several tasks into pairs (task, example): JSON objects, whose field ``task`` names the task.

    A line that is not a JSON object, lacks a column or names no task of ``tasks`` raises a DataError that names it.
    """
    for where, row in _parsed(lines, source):
        if not isinstance(row, Mapping):
            raise DataError(f"{where} is not a JSON object; with several prompts each line needs one with a 'task'")
        if "task" not in row:
            known = ", ".join(sorted(tasks))
            raise DataError(f"{where} has no field 'task'; with several prompts it names one of {known}")
        name = row["task"]
        if name not in list(tasks):  # a value that is not text may not be hashable
            raise DataError(f"{where}: no prompt is given for task {name!r}; {nearest(str(name), tasks)}")
        yield name, _example(row, where, tasks[name])


def is_one(texts: Any, task: TaskSpec) -> bool:
    """Tell whether a text or a row (a dict, or a row of a DataFrame) is given, rather than several."""
    row = hasattr(texts, "items") and set(placeholders(task.text)) <= set(getattr(texts, "index", ()))
    return isinstance(texts, (str, Mapping)) or row


def examples_of(texts: Any, task: TaskSpec) -> list[Example]:
    """Turn one text or row (a dict), or a list, DataFrame, `datasets.Dataset` or Series of them, into examples.

    Raises:
        DataError: A row lacks a column, or a text comes where the task needs several columns.
        TypeError: It is of another kind.
    """
    if isinstance(texts, (set, frozenset)):
        raise TypeError("predict answers in order, and a set has none; give a list")
    if is_one(texts, task):
        return [_example(texts if isinstance(texts, str) else dict(texts), "the text", task)]
    if hasattr(texts, "columns") or hasattr(texts, "column_names"):
        rows = from_memory(texts)
        texts = rows.fetch(range(len(rows)))
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"predict takes a text, a dict with a row, or a list of them, not {described(texts)}")
    return [_example(text, f"text {number}", task) for number, text in enumerate(texts, start=1)]


def _parsed(lines: Iterable[str], source: str) -> Iterator[tuple[str, Any]]:
    """Yield where each line is, and its JSON object, or else its text."""
    for number, line in enumerate(lines, start=1):
        where = f"{source}, line {number}"
        try:
            row = dict(json.loads(line)) if line.lstrip().startswith("{") else line.rstrip("\n")
        except ValueError as error:
            raise DataError(f"{where} is not valid JSON ({getattr(error, 'msg', error)})") from error
        if line.strip():
            yield where, row


def _example(row: Any, where: str, task: TaskSpec) -> Example:
    if not isinstance(row, (str, Mapping)):
        raise TypeError(f"{where} is {described(row)}; give a text, or a dict with the columns of the task")
    if isinstance(row, str):
        columns = placeholders(task.text)
        if len(columns) != 1:
            raise DataError(f"{where}: task {task.name} needs rows with the columns {', '.join(columns)}")
        row = {columns[0]: row}
    try:
        shown = prepared(task.prepare, row, training=False)[0] if task.prepare else row
        before, context, after = render(task, shown)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return Example(before, context, after, target="")


def predict(
    backbone: Backbone, prompt: Prompt | Mapping[str, Prompt], examples: Iterable[Any]
) -> Iterator[dict[str, Any]]:
    """Yield one answer per example, in order: ``text``, ``label`` and, for label words, ``probability`` and ``all``.

    With prompts by task, examples are pairs (task, example), and answers begin with ``task``; rows of all tasks go
    through the model together, and each gets the answer that it would get alone.
    An answer to a text that was cut to the prompt's length limit also has ``cut``: true, and a generated answer that
    was cut to the limit on its own tokens ``answer_cut``: true.
    The probabilities of an ensemble's prompts are averaged. They are softmax shares over the label words and
    tend to be overconfident (docs/method.md, Diagnostics).

    Raises:
        ArtifactError: `prompt` is neither a prompt nor prompts by task.
        BackboneError: A prompt belongs to another model.
        DataError: A row is of a task that has no prompt.
    """
    if isinstance(prompt, Prompt):
        for answer in predict(backbone, {"": prompt}, (("", example) for example in examples)):
            del answer["task"]
            yield answer
        return
    if not isinstance(prompt, Mapping):
        raise ArtifactError(f"predict takes prompts, not {described(prompt)}; evaluate scores those")
    routes = {name: _route(backbone, name, each) for name, each in prompt.items()}
    stream = iter(examples)
    while batch := list(islice(stream, BATCH)):
        for name, _ in batch:
            if name not in routes:
                raise DataError(f"a row is of task '{name}', which has no prompt; {nearest(name, routes)}")
        asked = [routes[name].ask(backbone, example) for name, example in batch]
        replies = iter(backbone.engine.answer([query for queries, _ in asked for query in queries]))
        for (name, example), (queries, cut) in zip(batch, asked, strict=True):
            answer = routes[name].read(list(islice(replies, len(queries))))
            yield {"task": name, "text": example.text, **answer, **({"cut": True} if cut else {})}


@dataclass(frozen=True)
class _Route:
    """How rows of one task are asked, and their answers read.

    Attributes:
        prompts: Of an ensemble, or one.
        scorer: How answers are read off the model.
        limit: Most tokens of a text.
    """

    task: TaskSpec
    prompts: tuple[Tensor, ...]
    scorer: Scorer
    limit: int

    def ask(self, backbone: Backbone, example: Example) -> tuple[list[Query], bool]:
        """Return a query for each prompt of an ensemble, and whether the text was cut."""
        text, cut = tokenise_text(backbone, example, self.limit)
        new_tokens = 0 if self.scorer.answers else self.scorer.answer_tokens
        return [Query(each, text, self.scorer.answers, new_tokens) for each in self.prompts], cut

    def read(self, replies: Sequence[Reply]) -> dict[str, Any]:
        if not self.scorer.answers:
            text = replies[0].text
            return {"label": text} if text.ended else {"label": text, "answer_cut": True}
        likelihoods = torch.stack([reply.log_likelihoods for reply in replies])  # [M, C]
        shares = likelihoods.softmax(dim=1).mean(dim=0).tolist()
        best = max(range(len(shares)), key=shares.__getitem__)
        words = self.task.label_words
        return {"label": words[best], "probability": shares[best], "all": dict(zip(words, shares, strict=True))}


def _route(backbone: Backbone, name: str, prompt: Prompt) -> _Route:
    card = prompt.card
    try:
        require_backbone(card.backbone, backbone)
    except BackboneError as error:
        raise BackboneError(f"prompt for task {name}: {error}" if name else str(error)) from error
    task = saved_task(card.task_definition)
    scorer = make_scorer(backbone, task, answer_tokens=card.answer_tokens)
    prompts = prompt.prompts if scorer.answers else prompt.prompts[:1]  # texts cannot be averaged
    limit = card.settings.get("max_length") or task.max_length
    return _Route(task, tuple(prompts.to(backbone.device)), scorer, limit)
