"""`POST /models/{name}`: a text, as Hugging Face's clients send it for text classification.

client = huggingface_hub.InferenceClient(model="http://127.0.0.1:8000/models/tickets")
client.text_classification("I was charged twice.")
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from bmtpt.serve.schema import PromptName, Rows, refusals
from bmtpt.serve.service import Answer, Row, Service
from bmtpt.serve.settings import ServeSettings


class Parameters(BaseModel):
    """Options of the client.

    Attributes:
        top_k: Return so many of the likeliest labels; None returns all.
        function_to_apply: The scores are probabilities, which is what `softmax` asks for.
    """

    top_k: int | None = Field(default=None, ge=1)
    function_to_apply: Literal["softmax"] | None = None


class HuggingFaceRequest(BaseModel):
    """A text, an object with the columns of a row, or a list of them."""

    inputs: Rows
    parameters: Parameters = Parameters()


class Score(BaseModel):
    """A label and its probability."""

    label: str
    score: float


def router(service: Service, settings: ServeSettings) -> APIRouter:
    """Return the route."""
    routes = APIRouter(tags=["Hugging Face"])

    @routes.post("/models/{name}", responses=refusals())
    async def classify(name: Annotated[PromptName, Path()], request: HuggingFaceRequest) -> list[list[Score]]:
        """Return the labels of each text, likeliest first, as Hugging Face's text classification does.

        The reply is a list of lists for one text too: clients read the first.
        """
        inputs = request.inputs if isinstance(request.inputs, list) else [request.inputs]
        answers = await service.answer([Row(name, each) for each in inputs])
        return [scores(answer)[: request.parameters.top_k] for answer in answers]

    return routes


def scores(answer: Answer) -> list[Score]:
    """Return all labels, likeliest first."""
    shares = sorted(answer.by_label().items(), key=lambda share: -share[1])
    return [Score(label=label, score=share) for label, share in shares]
