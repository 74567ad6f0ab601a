"""`POST /v1/classify` and `GET /v1/models`, as vLLM and SGLang have them."""

from __future__ import annotations

import time
import uuid
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel

from bmtpt.serve.schema import Probability, PromptName, Rows, refusals
from bmtpt.serve.service import Answer, Row, Service
from bmtpt.serve.settings import ServeSettings
from bmtpt.serve.shelf import Served, unknown
from bmtpt.serve.wire import Model
from bmtpt.tasks.spec import placeholders


class ClassifyRequest(BaseModel):
    """A text, an object with the columns of a row, or a list of them.

    Attributes:
        abstain: Give no label where none reaches this probability.
    """

    model: PromptName
    input: Rows
    abstain: Probability | None = None


class Classified(BaseModel):
    """The answer to a text; ``probs`` are in the order of the model's ``labels``."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class Usage(BaseModel):
    """Tokens of the texts, without the prompt's own; nothing is generated."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class Classification(BaseModel):
    """Answers, in the order of the texts."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classified]
    usage: Usage


class Models(BaseModel):
    """The loaded prompts, by name."""

    object: Literal["list"] = "list"
    data: list[Model]


def router(service: Service, settings: ServeSettings) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["vLLM"])

    @routes.post("/v1/classify", responses=refusals())
    async def classify(request: ClassifyRequest) -> Classification:
        """Label texts, as the classification API of vLLM and SGLang does."""
        inputs = request.input if isinstance(request.input, list) else [request.input]
        answers = await service.answer([Row(request.model, each) for each in inputs])
        tokens = sum(answer.tokens for answer in answers)
        return Classification(
            id=f"classify-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=request.model,
            data=[classified(place, answer, request.abstain) for place, answer in enumerate(answers)],
            usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        )

    @routes.get("/v1/models", responses=refusals(401, 429))
    async def models() -> Models:
        """List the loaded prompts."""
        return Models(data=[model(served) for _, served in sorted(service.shelf.snapshot().items())])

    @routes.get("/v1/models/{name}", responses=refusals(401, 404, 422, 429))
    async def one_model(name: Annotated[PromptName, Path()]) -> Model:
        """Describe a loaded prompt."""
        snapshot = service.shelf.snapshot()
        if name not in snapshot:
            raise unknown(name, snapshot)
        return model(snapshot[name])

    return routes


def classified(place: int, answer: Answer, abstain: float | None) -> Classified:
    """Return an answer in vLLM's shape."""
    shares = list(answer.by_label().values())
    label = None if answer.abstains(abstain) else answer.label
    return Classified(index=place, label=label, probs=shares, num_classes=len(shares))


def model(served: Served) -> Model:
    """Describe a loaded prompt."""
    return Model(
        id=served.name,
        created=int(datetime.fromisoformat(served.prompt.card.created).timestamp()),
        labels=list(served.task.label_words) if served.task.fixed_words else [],
        columns=list(dict.fromkeys(placeholders(served.task.text))),
    )
