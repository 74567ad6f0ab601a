"""The one thing that routes call: rows in, answers out, each as `bmtpt predict` gives it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self

from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.errors import DataError, described
from bmtpt.inference.predict import Outcome, answer_together, make_route
from bmtpt.inference.rows import as_example
from bmtpt.serve.batcher import Batcher
from bmtpt.serve.errors import BadRow
from bmtpt.serve.settings import ServeSettings
from bmtpt.serve.shelf import Served, Shelf, Snapshot, unknown
from bmtpt.types import Example


class Row(NamedTuple):
    """What is to be answered.

    Attributes:
        task: The name of a loaded prompt.
        example: The columns of the task, or its text if it has one column.
    """

    task: str
    example: Mapping[str, str] | str


@dataclass(frozen=True)
class Answer:
    """The answer to a row.

    Attributes:
        task: As in the row.
        label: The likeliest label word, or the text that the model has written.
        probabilities: Of each label word, in the task's order; None if the answer was written.
        cut: Whether the text was cut to the prompt's limit.
        spread: Standard deviation of each probability over the prompts of an ensemble; None if it was not asked for,
            or the prompt is no ensemble.
        answer_cut: Whether the written answer was cut to its limit.
        tokens: Of the text, after it was cut.
    """

    task: str
    label: str
    probabilities: Mapping[str, float] | None
    cut: bool = False
    spread: Mapping[str, float] | None = None
    answer_cut: bool = False
    tokens: int = 0

    def by_label(self) -> Mapping[str, float]:
        """Return the probability of each label, in the task's order.

        Raises:
            BadRow: The answer was written.
        """
        if self.probabilities is None:
            raise BadRow(f"prompt '{self.task}' writes its answers and has no label probabilities; use POST /predict")
        return self.probabilities


class Ask(NamedTuple):
    """A row on its way to the model, with the prompt that was loaded when it came."""

    served: Served
    example: Example
    where: str


class Service:
    """A frozen model, the prompts on a shelf, and the queue in front of the model."""

    def __init__(
        self, backbone: Backbone, shelf: Shelf, batcher: Batcher[Ask, Outcome], deadline: float = 30.0
    ) -> None:
        self.backbone, self.shelf, self.batcher, self.deadline = backbone, shelf, batcher, deadline

    @classmethod
    def of(cls, backbone: Backbone, prompts: Mapping[str, Prompt], settings: ServeSettings | None = None) -> Self:
        """Return a service that runs, with these prompts loaded.

        Raises:
            BackboneError: A prompt belongs to another model.
        """
        settings = settings or ServeSettings()
        work = partial(answer_asked, backbone)
        wait = settings.max_wait_ms / 1000
        batcher = Batcher(work, max_batch=settings.max_batch, max_wait=wait, queue=settings.queue)
        service = cls(backbone, Shelf(), batcher, settings.deadline)
        for name, prompt in prompts.items():
            service.shelf.put(batcher.call(partial(service._served, name, prompt)).result())
        return service

    def _served(self, name: str, prompt: Prompt) -> Served:
        return Served(name, prompt, make_route(self.backbone, prompt, name=name))

    async def load(self, name: str, prompt: Prompt) -> Served | None:
        """Load a prompt, or replace the one of its name, which is returned.

        Raises:
            BackboneError: It belongs to another model.
        """
        return self.shelf.put(await asyncio.wrap_future(self.batcher.call(partial(self._served, name, prompt))))

    async def answer(self, rows: Sequence[Row], *, deadline: float | None = None, spread: bool = False) -> list[Answer]:
        """Return the answers to some rows, in order; rows of all tasks and requests share the model's passes.

        Args:
            deadline: Seconds that the answers are worth waiting for; None takes the server's.
            spread: Whether to say how far the prompts of an ensemble differ.

        Raises:
            UnknownPrompt: A row's prompt is not loaded.
            BadRow: A row lacks a column, or holds what is no text.
            Busy, Draining, Late: See `bmtpt.serve.errors`.
        """
        snapshot = self.shelf.snapshot()
        asked = [ask(row, number, snapshot) for number, row in enumerate(rows, start=1)]
        limit = self.deadline if deadline is None else min(deadline, self.deadline)
        outcomes = await self.batcher.answer(asked, limit)
        return [_answer(row.task, outcome, spread) for row, outcome in zip(rows, outcomes, strict=True)]


def ask(row: Row, number: int, snapshot: Snapshot) -> Ask:
    """Return a row with its prompt, as a text. Raises as `Service.answer`."""
    if (served := snapshot.get(row.task)) is None:
        raise unknown(row.task, snapshot)
    where = f"row {number}"
    if not isinstance(row.example, str | Mapping):
        raise BadRow(f"{where} is {described(row.example)}; give a text, or an object with the columns of the task")
    try:
        return Ask(served, as_example(row.example, where, served.task), where)
    except DataError as error:
        raise BadRow(str(error)) from error


def answer_asked(backbone: Backbone, asked: Sequence[Ask]) -> list[Outcome | Exception]:
    """Answer a batch; a row that cannot be answered gets its error."""
    outcomes = answer_together(backbone, [(each.served.route, each.example) for each in asked])
    return [
        BadRow(f"{each.where}: {outcome}") if isinstance(outcome, DataError) else outcome
        for each, outcome in zip(asked, outcomes, strict=True)
    ]


def _answer(task: str, outcome: Outcome, spread: bool) -> Answer:
    written = outcome.shares is None
    several = outcome.shares is not None and len(outcome.shares) > 1
    return Answer(
        task,
        outcome.label,
        None if written else outcome.probabilities,
        outcome.cut,
        outcome.spread if spread and several else None,
        outcome.answer_cut,
        outcome.tokens,
    )
