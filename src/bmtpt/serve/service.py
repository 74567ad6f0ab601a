"""The one thing that routes call: rows in, answers out, each as `bmtpt predict` gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.errors import DataError, described
from bmtpt.inference.predict import Outcome, answer_together, make_route
from bmtpt.inference.rows import as_example
from bmtpt.serve.batcher import Batcher
from bmtpt.serve.errors import BadPrompt, BadRow, TooLarge
from bmtpt.serve.log import event
from bmtpt.serve.settings import ServeSettings
from bmtpt.serve.shelf import Served, Shelf, Snapshot, require_name, unknown
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

    @property
    def probability(self) -> float | None:
        """Of the label; None if the answer was written."""
        return None if self.probabilities is None else self.probabilities[self.label]

    def top(self, k: int | None) -> dict[str, float] | None:
        """Return the k likeliest label words with their probabilities, likeliest first; all in order without a k."""
        if self.probabilities is None or k is None:
            return None if self.probabilities is None else dict(self.probabilities)
        return dict(sorted(self.probabilities.items(), key=lambda each: -each[1])[:k])

    def abstains(self, threshold: float | None) -> bool:
        """Tell whether the label's probability is below a threshold; an answer that was written has none."""
        return threshold is not None and self.probability is not None and self.probability < threshold


class Ask(NamedTuple):
    """A row on its way to the model.

    Attributes:
        served: The prompt that was loaded when it came.
        where: Its place in the request, for messages.
        spread: Whether its answer is to have one.
    """

    served: Served
    example: Example
    where: str
    spread: bool = False


class Service:
    """A frozen model, the prompts on a shelf, and the queue in front of the model.

    Attributes:
        folders: Where prompts were given at the start, by name: the only places that are read again on request.
    """

    def __init__(
        self, backbone: Backbone, shelf: Shelf, batcher: Batcher[Ask, Answer], settings: ServeSettings | None = None
    ) -> None:
        self.backbone, self.shelf, self.batcher = backbone, shelf, batcher
        self.settings = settings or ServeSettings()
        self.folders: Mapping[str, Path] = {}

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
        service = cls(backbone, Shelf(), batcher, settings)
        batcher.call(lambda: backbone.engine).result()  # built now, or refused
        for name, prompt in prompts.items():
            service.load(name, prompt)
        return service

    def load(self, name: str, prompt: Prompt, origin: str = "start") -> Served | None:
        """Load a prompt, or replace the one of its name, which is returned; requests that wait keep the old one.

        Waits for the model's thread: not for the event loop (see `asyncio.to_thread`).

        Raises:
            BackboneError: It belongs to another model.
            BadPrompt: Its name cannot be used, or it has too many label words.
            Draining: The server is about to stop.
        """
        require_name(name)
        served = self.batcher.call(partial(self._served, name, prompt, origin)).result()
        return self.shelf.put(served)

    def _served(self, name: str, prompt: Prompt, origin: str) -> Served:
        route = make_route(self.backbone, prompt, name=name)
        labels, most = len(route.task.label_words), self.settings.max_labels
        if labels > most:
            raise BadPrompt(f"prompt '{name}' has {labels:,} label words, and at most {most:,} are allowed")
        return Served(name, prompt, route, origin)

    async def answer(self, rows: Sequence[Row], *, deadline: float | None = None, spread: bool = False) -> list[Answer]:
        """Return the answers to some rows, in order; rows of all tasks and requests share the model's passes.

        Args:
            deadline: Seconds that the answers are worth waiting for; None takes the server's.
            spread: Whether to say how far the prompts of an ensemble differ.

        Raises:
            UnknownPrompt: A row's prompt is not loaded.
            BadRow: A row lacks a column, or holds what is no text.
            TooLarge: There are too many rows, or one of them is too long.
            Busy, Draining, Late: See `bmtpt.serve.errors`.
        """
        if len(rows) > (most := min(self.settings.max_rows, self.settings.queue)):
            raise TooLarge(f"{len(rows):,} rows are too many; send at most {most:,} at a time")
        self.batcher.require_room(len(rows))
        snapshot = self.shelf.snapshot()
        asked = [self._asked(row, number, snapshot, spread) for number, row in enumerate(rows, start=1)]
        limit = self.settings.deadline if deadline is None else min(deadline, self.settings.deadline)
        answers = await self.batcher.answer(asked, limit)
        if self.settings.log_texts:
            event("answered", rows=[row.example for row in rows], labels=[answer.label for answer in answers])
        return answers

    def _asked(self, row: Row, number: int, snapshot: Snapshot, spread: bool) -> Ask:
        found = ask(row, number, snapshot)
        if (length := len(found.example.text)) > self.settings.max_text:
            most = self.settings.max_text
            raise TooLarge(f"{found.where} has {length:,} characters, and at most {most:,} are allowed; shorten it")
        return found._replace(spread=spread)


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


def answer_asked(backbone: Backbone, asked: Sequence[Ask]) -> list[Answer | Exception]:
    """Answer a batch, in the model's thread; a row that cannot be answered gets its error."""
    outcomes = answer_together(backbone, [(each.served.route, each.example) for each in asked])
    return [
        BadRow(f"{each.where}: {outcome}") if isinstance(outcome, DataError) else _answer(each, outcome)
        for each, outcome in zip(asked, outcomes, strict=True)
    ]


def _answer(asked: Ask, outcome: Outcome) -> Answer:
    several = outcome.shares is not None and len(outcome.shares) > 1
    return Answer(
        asked.served.name,
        outcome.label,
        None if outcome.shares is None else outcome.probabilities,
        outcome.cut,
        outcome.spread if asked.spread and several else None,
        outcome.answer_cut,
        outcome.tokens,
    )
