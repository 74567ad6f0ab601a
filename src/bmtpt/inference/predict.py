"""Answer new texts through the same templates and the same forward path as training, many tasks in one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
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

    Of several ranks, rank 0 reads the rows, each answers a batch of them, and all yield every answer.

    Raises:
        BackboneError: As `predict`.
    """
    several = len(prompts) > 1
    routes = {name: make_route(backbone, each, normalise, name if several else "") for name, each in prompts.items()}

    def answers(batch: Sequence[Asked]) -> list[dict[str, Any] | DataError]:
        wrong = {place: error for place, row in enumerate(batch) if (error := _wrong(routes, row))}
        sound = [row for place, row in enumerate(batch) if place not in wrong]
        outcomes = iter(answer_together(backbone, [(routes[row.task], row.example) for row in sound]))  # type: ignore[misc]
        return [wrong.get(place) or _shown(row, next(outcomes)) for place, row in enumerate(batch)]

    for turn in backbone.ranks.turns(_batches(rows)):
        for batch, found in zip(turn, backbone.ranks.spread(turn, answers), strict=True):
            yield from zip(batch, found, strict=True)


def answer_together(backbone: Backbone, asked: Sequence[tuple[Route, Example]]) -> list[Outcome | DataError]:
    """Answer texts of any tasks in shared passes; each gets the answer that it would get alone.

    A text that cannot be answered gets what is wrong with it.
    """
    found = [_asked(backbone, route, example) for route, example in asked]
    replies = iter(backbone.engine.answer([query for each in found if isinstance(each, tuple) for query in each[0]]))
    outcomes: list[Outcome | DataError] = []
    for each, (route, _) in zip(found, asked, strict=True):
        if isinstance(each, DataError):
            outcomes.append(each)
            continue
        queries, cut = each
        read = route.read(list(islice(replies, len(queries))))
        outcomes.append(replace(read, tokens=len(queries[0].text), cut=cut))
    return outcomes


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


def _wrong(routes: Mapping[str, Route], row: Asked) -> DataError | None:
    """Return what keeps a row from being asked at all."""
    if isinstance(row.example, DataError):
        return row.example
    if row.task not in routes:
        return DataError(f"a row is of task '{row.task}', which has no prompt; {nearest(row.task, routes)}")
    return None


def _asked(backbone: Backbone, route: Route, example: Example) -> tuple[list[Query], bool] | DataError:
    try:
        return route.ask(backbone, example)
    except DataError as error:
        return error


def _shown(row: Asked, outcome: Outcome | DataError) -> dict[str, Any] | DataError:
    if isinstance(outcome, DataError):
        return DataError(f"{row.where}: {outcome}" if row.where else str(outcome))
    assert isinstance(row.example, Example)
    shown: dict[str, Any] = {"text": row.example.text, "label": outcome.label}
    if outcome.shares is not None:
        probabilities = outcome.probabilities
        shown |= {"probability": probabilities[outcome.label], "all": probabilities}
    return shown | {name: True for name in ("answer_cut", "cut") if getattr(outcome, name)}


@dataclass(frozen=True)
class Outcome:
    """The answer to one text.

    Attributes:
        label: The likeliest label word, or what the model has written.
        words: The task's label words, in order; none if the answer was written.
        shares: What each prompt of an ensemble gives the label words; None if the answer was written.
        tokens: Of the text, after it was cut.
        cut: Whether the text was cut to the prompt's limit.
        answer_cut: Whether the written answer was cut to its limit.
    """

    label: str
    words: tuple[str, ...] = ()
    shares: Float[Tensor, "M C"] | None = None
    tokens: int = 0
    cut: bool = False
    answer_cut: bool = False

    @property
    def probabilities(self) -> dict[str, float]:
        """The mean over an ensemble's prompts, by label word."""
        return {} if self.shares is None else self._by_word(self.shares.mean(dim=0))

    @property
    def spread(self) -> dict[str, float]:
        """The standard deviation over an ensemble's prompts, by label word; 0 with one prompt."""
        return {} if self.shares is None else self._by_word(self.shares.std(dim=0, correction=0))

    def _by_word(self, values: Float[Tensor, " C"]) -> dict[str, float]:
        return dict(zip(self.words, values.tolist(), strict=True))


@dataclass(frozen=True)
class Route:
    """How rows of one task are asked, and their answers read (`make_route`).

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
        """Return a query for each prompt of an ensemble, and whether the text was cut.

        Raises:
            DataError: The text has no tokens, and the model needs some.
        """
        text, cut = tokenise_text(backbone, example, self.limit)
        if not len(text):
            raise DataError("the text has no tokens, and a decoder-only model continues a text; give one with some")
        scorer = self.reader.scorer
        new_tokens = 0 if scorer.answers else scorer.answer_tokens
        return [Query(each, text, scorer.answers, new_tokens) for each in self.prompts], cut

    def read(self, replies: Sequence[Reply]) -> Outcome:
        """Return the answer that the replies to a text's queries make."""
        if not self.reader.scorer.answers:
            text = replies[0].text
            return Outcome(text, answer_cut=not text.ended)
        parts = [reply.log_likelihoods for reply in replies], [reply.states for reply in replies]
        readings = Readings(*(torch.stack(each)[:, None] for each in parts))  # N = 1
        shares = self.reader.scores(readings).softmax(dim=2)[:, 0]
        words = self.task.label_words
        return Outcome(words[int(shares.mean(dim=0).argmax())], words, shares)


def make_route(backbone: Backbone, prompt: Prompt, normalise: Normalise | None = None, name: str = "") -> Route:
    """Return how a prompt's rows are asked and read; with `pmi`, this runs the model once.

    Args:
        normalise: How label words are made comparable; None takes what the prompt was selected with.
        name: Of the prompt among several, for messages.

    Raises:
        BackboneError: The prompt belongs to another model.
        SettingsError: It cannot be read in this way.
    """
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
    return Route(task, tuple(prompts), reader, limit)
