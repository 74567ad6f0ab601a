"""Answer new texts through the same templates and the same forward path as training, many tasks in one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from bmtpt.artifacts.card import require_backbone
from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.backbone.engine import Query, Readings, Reply
from bmtpt.errors import ArtifactError, BackboneError, DataError, described, nearest
from bmtpt.inference.rows import Asked
from bmtpt.inference.score import Reader, chosen_way, make_reader, make_scorer
from bmtpt.tasks import TaskSpec, saved_task
from bmtpt.tasks.tokens import tokenise_text
from bmtpt.types import Example, Normalise

BATCH = 64
"""Rows answered at a time, so that answers stream while a long input is still being read."""


def predict(
    backbone: Backbone,
    prompt: Prompt | Mapping[str, Prompt],
    examples: Iterable[Any],
    normalise: Normalise | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one answer per example, in order: ``text``, ``label`` and, for label words, ``probability`` and ``all``.

    With prompts by task, examples are pairs (task, example), and answers begin with ``task``; rows of all tasks go
    through the model together, and each gets the answer that it would get alone.
    An answer to a text that was cut to the prompt's length limit also has ``cut``: true, and a generated answer that
    was cut to the limit on its own tokens ``answer_cut``: true.
    The probabilities of an ensemble's prompts are averaged. They are softmax shares over the label words and
    tend to be overconfident (docs/method.md, Diagnostics).

    Args:
        normalise: How label words are made comparable; None takes what each prompt was selected with.

    Raises:
        ArtifactError: `prompt` is neither a prompt nor prompts by task.
        BackboneError: A prompt belongs to another model.
        DataError: A row is of a task that has no prompt, or its text cannot be read.
    """
    if isinstance(prompt, Prompt):
        prompts = {prompt.card.task: prompt}
        examples = ((prompt.card.task, example) for example in examples)
    elif isinstance(prompt, Mapping):
        prompts = dict(prompt)
    else:
        raise ArtifactError(f"predict takes prompts, not {described(prompt)}; evaluate scores those")
    asked = (Asked("", task, example) for task, example in examples)
    for row, answer in answered(backbone, prompts, asked, normalise):
        if isinstance(answer, DataError):
            raise answer
        yield answer if isinstance(prompt, Prompt) else {"task": row.task, **answer}


def answered(
    backbone: Backbone, prompts: Mapping[str, Prompt], rows: Iterable[Asked], normalise: Normalise | None = None
) -> Iterator[tuple[Asked, dict[str, Any] | DataError]]:
    """Yield each row with its answer, as `predict` does, or with what is wrong with it; the rows after it follow.

    Raises:
        BackboneError: As `predict`.
    """
    several = len(prompts) > 1
    routes = {name: _route(backbone, name if several else "", each, normalise) for name, each in prompts.items()}
    for batch in _batches(rows):
        asked = [_queries(backbone, routes, row) for row in batch]
        queries = [query for each in asked if isinstance(each, tuple) for query in each[0]]
        replies = iter(backbone.engine.answer(queries))
        for row, each in zip(batch, asked, strict=True):
            if isinstance(each, DataError):
                yield row, each
                continue
            own, cut = each
            answer = routes[row.task].read(list(islice(replies, len(own))))
            assert isinstance(row.example, Example)
            yield row, {"text": row.example.text, **answer, **({"cut": True} if cut else {})}


def _batches(rows: Iterable[Asked]) -> Iterator[list[Asked]]:
    """Yield rows in batches. If the source fails, the rows before that come first: their answers are not lost."""
    batch: list[Asked] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH:
                yield batch
                batch = []
    except DataError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _queries(backbone: Backbone, routes: Mapping[str, _Route], row: Asked) -> tuple[list[Query], bool] | DataError:
    """Return what to ask of a row, and whether its text was cut, or what is wrong with it."""
    if isinstance(row.example, DataError):
        return row.example
    if row.task not in routes:
        return DataError(f"a row is of task '{row.task}', which has no prompt; {nearest(row.task, routes)}")
    try:
        return routes[row.task].ask(backbone, row.example)
    except DataError as error:
        return DataError(f"{row.where}: {error}" if row.where else str(error))


@dataclass(frozen=True)
class _Route:
    """How rows of one task are asked, and their answers read.

    Attributes:
        prompts: Of an ensemble, or one.
        reader: How the prompts' readings become answers.
        limit: Most tokens of a text.
    """

    task: TaskSpec
    prompts: tuple[Tensor, ...]
    reader: Reader
    limit: int

    def ask(self, backbone: Backbone, example: Example) -> tuple[list[Query], bool]:
        """Return a query for each prompt of an ensemble, and whether the text was cut."""
        text, cut = tokenise_text(backbone, example, self.limit)
        if not len(text):
            raise DataError("the text has no tokens, and a decoder-only model continues a text; give one with some")
        scorer = self.reader.scorer
        new_tokens = 0 if scorer.answers else scorer.answer_tokens
        return [Query(each, text, scorer.answers, new_tokens) for each in self.prompts], cut

    def read(self, replies: Sequence[Reply]) -> dict[str, Any]:
        if not self.reader.scorer.answers:
            text = replies[0].text
            return {"label": text} if text.ended else {"label": text, "answer_cut": True}
        parts = [reply.log_likelihoods for reply in replies], [reply.states for reply in replies]
        readings = Readings(*(torch.stack(each)[:, None] for each in parts))  # N = 1
        shares = self.reader.scores(readings).softmax(dim=2).mean(dim=(0, 1)).tolist()
        best = max(range(len(shares)), key=shares.__getitem__)
        words = self.task.label_words
        return {"label": words[best], "probability": shares[best], "all": dict(zip(words, shares, strict=True))}


def _route(backbone: Backbone, name: str, prompt: Prompt, normalise: Normalise | None) -> _Route:
    card = prompt.card
    try:
        require_backbone(card.backbone, backbone)
    except BackboneError as error:
        raise BackboneError(f"prompt for task {name}: {error}" if name else str(error)) from error
    task = saved_task(card.task_definition)
    way = chosen_way(normalise, card.settings, prompt.readouts) if normalise or task.fixed_words else "none"
    scorer = make_scorer(backbone, task, answer_tokens=card.answer_tokens, normalise=way)
    prompts = (prompt.prompts if scorer.answers else prompt.prompts[:1]).to(backbone.device)  # texts have no average
    reader = make_reader(backbone.engine, prompts, scorer, prompt.readouts)
    if reader.domain is not None:
        reader = reader._replace(domain=reader.domain.cpu())  # replies are on the CPU
    limit = card.settings.get("max_length") or task.max_length
    return _Route(task, tuple(prompts), reader, limit)
