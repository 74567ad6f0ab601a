"""`POST /predict`: rows of several tasks in one request, as `bmtpt predict` takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from bmtpt.errors import described, shortened
from bmtpt.serve.errors import BadRow
from bmtpt.serve.schema import Probability, PromptName, RowInput, refusals
from bmtpt.serve.service import Answer, Row, Service
from bmtpt.serve.settings import ServeSettings
from bmtpt.serve.shelf import Snapshot
from bmtpt.serve.wire import Predicted
from bmtpt.tasks.spec import placeholders


class PredictRequest(BaseModel):
    """Rows, and what to say of them.

    Attributes:
        rows: Objects with the columns of their tasks; a task of one column also takes texts.
        task: The prompt that all rows are for. Without it each row names its own in the field "task", unless only one
            prompt is loaded.
        spread: Also give the standard deviation of each probability over the prompts of an ensemble.
        abstain: Give no label (null) where none reaches this probability.
        top_k: Give only so many of the likeliest labels, likeliest first.
        deadline: Seconds that the answers are worth waiting for; at most the server's own.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    rows: list[RowInput]
    task: PromptName | None = None
    spread: bool = False
    abstain: Probability | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class Predictions(BaseModel):
    """One answer for each row, in their order."""

    answers: list[Predicted]


def router(service: Service, settings: ServeSettings) -> APIRouter:
    """Return the route."""
    routes = APIRouter(tags=["bmtpt"])

    @routes.post("/predict", responses=refusals())
    async def predict(request: PredictRequest) -> Predictions:
        """Answer rows of any of the loaded prompts; each gets the answer that `bmtpt predict` gives it."""
        rows = named(request.rows, request.task, service.shelf.snapshot())
        answers = await service.answer(rows, deadline=request.deadline, spread=request.spread)
        return Predictions(answers=[predicted(each, n, request) for n, each in enumerate(answers, start=1)])

    return routes


def named(rows: Sequence[str | Mapping[str, Any]], task: str | None, snapshot: Snapshot) -> list[Row]:
    """Return rows with the names of their prompts.

    Raises:
        BadRow: A row does not say whose it is, or something else than the request.
    """
    if task is None:
        return [_with_own_name(row, number, snapshot) for number, row in enumerate(rows, start=1)]
    columns = placeholders(snapshot[task].task.text) if task in snapshot else ()
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Mapping) and "task" not in columns and row.get("task", task) != task:
            other = shortened(row["task"])
            raise BadRow(f"row {number} is for task '{other}' and the request for '{task}'; leave one of the two out")
    return [Row(task, row) for row in rows]


def _with_own_name(row: str | Mapping[str, Any], number: int, snapshot: Snapshot) -> Row:
    only = next(iter(snapshot.values())) if len(snapshot) == 1 else None
    if only and (isinstance(row, str) or "task" not in row or "task" in placeholders(only.task.text)):
        return Row(only.name, row)
    name = row.get("task") if isinstance(row, Mapping) else None
    if isinstance(name, str):
        return Row(name, row)
    what = "a text" if isinstance(row, str) else f"{described(name)} in 'task'" if "task" in row else "no field 'task'"
    known = shortened(", ".join(sorted(snapshot)), 120) or "none is loaded"
    raise BadRow(f'row {number} names no prompt (it is {what}); give "task", here or for all rows: {known}')


def predicted(answer: Answer, number: int, request: PredictRequest) -> Predicted:
    """Return an answer as the request wants it.

    Raises:
        BadRow: A probability is asked for, and the answer was written.
    """
    if request.abstain is not None and answer.probabilities is None:
        raise BadRow(f"row {number}: prompt '{answer.task}' writes its answers, without probabilities; drop 'abstain'")
    kept = answer.top(request.top_k)
    spread = None if answer.spread is None or kept is None else {word: answer.spread[word] for word in kept}
    return Predicted(
        task=answer.task,
        label=None if answer.abstains(request.abstain) else answer.label,
        probability=answer.probability,
        all=kept,
        spread=spread,
        cut=answer.cut,
        answer_cut=answer.answer_cut,
    )
