"""`POST /v1/decisions`: questions about one input, as the client of OpenAI's Decisions API asks them.

    client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-")
    choices = [{"value": "billing"}, {"value": "technical"}]
    question = {"type": "choice", "instructions": "Which team?", "choices": choices}
    client.decisions.create(model="tickets", input="I was charged twice.", questions=[question])

What a prompt answers it has learned from labelled rows: `instructions` and descriptions of choices are taken and not
read. The choices are labels of the task. If they are only some of its labels, probabilities are those given that it is
one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, StrictBool, StrictStr, Tag

from bmtpt.errors import nearest
from bmtpt.serve.errors import BadRow
from bmtpt.serve.schema import KINDS, Probability, PromptName, Text, either, refusals
from bmtpt.serve.service import Answer, Row, Service
from bmtpt.serve.settings import ServeSettings

Value = Annotated[
    Annotated[StrictStr, Tag(KINDS[str])] | Annotated[StrictBool, Tag(KINDS[bool])],
    either("a label, as text or as a boolean"),
]


class TextPart(BaseModel):
    """A piece of text."""

    type: Literal["input_text"]
    text: str


class JsonPart(BaseModel):
    """The columns of a row."""

    type: Literal["input_json"]
    data: dict[str, Any]


class Message(BaseModel):
    """What is to be judged. A soft prompt follows no instructions, so other roles have no meaning here."""

    role: Literal["user"]
    content: Annotated[
        Text | Annotated[list[Annotated[TextPart | JsonPart, Field(discriminator="type")]], Tag(KINDS[list])],
        either("a text, or a list of parts"),
    ]
    type: Literal["message"] = "message"


class Choice(BaseModel):
    """A label. A boolean stands for the label that is spelled like it in any case, such as True."""

    value: Value
    description: str = ""


class Question(BaseModel):
    """Which of some labels fits the input."""

    type: Literal["choice"]
    choices: list[Choice] = Field(min_length=2, max_length=255)
    instructions: Any = ""
    name: str | None = None


class DecisionRequest(BaseModel):
    """Questions about one input.

    Attributes:
        input: A text, or messages of the user that together hold one text or one object with the columns of a row.
        abstain: Refuse a question if no choice reaches this probability.
    """

    model: PromptName
    input: Annotated[Text | Annotated[list[Message], Tag(KINDS[list])], either("a text, or a list of messages")]
    questions: list[Question] = Field(min_length=1, max_length=400)
    abstain: Probability | None = None


class ChoiceProbability(BaseModel):
    """A choice's probability."""

    value: Value
    probability: float


class ChoiceAnswer(BaseModel):
    """The likeliest choice; ``confidence`` is its probability."""

    type: Literal["choice"] = "choice"
    name: str | None
    choice: Value
    confidence: float
    probabilities: list[ChoiceProbability]


class RefusalAnswer(BaseModel):
    """No choice reaches the probability that was asked for."""

    type: Literal["refusal"] = "refusal"
    name: str | None


class InputDetails(BaseModel):
    """No answer is cached."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    """Nothing is reasoned."""

    reasoning_tokens: int = 0


class Usage(BaseModel):
    """Tokens of the text, without the prompt's own; nothing is generated."""

    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int = 0
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class Decision(BaseModel):
    """Answers, in the order of the questions."""

    model: str
    answers: list[ChoiceAnswer | RefusalAnswer]
    usage: Usage


def router(service: Service, settings: ServeSettings) -> APIRouter:
    """Return the route."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post("/v1/decisions", responses=refusals())
    async def decide(request: DecisionRequest) -> Decision:
        """Answer questions about one input, as OpenAI's Decisions API does."""
        (found,) = await service.answer([Row(request.model, read_input(request.input))])
        questions = enumerate(request.questions, start=1)
        answers = [decided(question, number, found, request.abstain) for number, question in questions]
        usage = Usage(input_tokens=found.tokens, total_tokens=found.tokens)
        return Decision(model=request.model, answers=answers, usage=usage)

    return routes


def read_input(given: str | list[Message]) -> str | Mapping[str, Any]:
    """Return the one row that an input holds.

    Raises:
        BadRow: It holds several rows, a text next to a row, or nothing.
    """
    if isinstance(given, str):
        return given
    parts = [part for message in given for part in _parts(message)]
    objects = [part for part in parts if isinstance(part, Mapping)]
    if len(objects) == 1 == len(parts):
        return objects[0]
    if objects or not parts:
        found = f"{len(objects)} objects and {len(parts) - len(objects)} texts" if parts else "nothing"
        raise BadRow(f"input holds {found}; give texts, which are joined, or one object with the columns of the task")
    return "\n".join(str(part) for part in parts)


def _parts(message: Message) -> list[str | Mapping[str, Any]]:
    if isinstance(message.content, str):
        return [message.content]
    return [part.text if isinstance(part, TextPart) else part.data for part in message.content]


def decided(question: Question, number: int, answer: Answer, abstain: float | None) -> ChoiceAnswer | RefusalAnswer:
    """Return the answer to a question from the probabilities of all labels.

    Raises:
        BadRow: A choice is not a label of the task, or comes twice.
    """
    labels = answer.by_label()
    values = [choice.value for choice in question.choices]
    chosen = [_label(value, labels, f"question {number}") for value in values]
    if len(set(chosen)) < len(chosen):
        raise BadRow(f"question {number}: a label comes twice among the choices; give each once")
    total = sum(labels[label] for label in chosen) if len(chosen) < len(labels) else 1.0
    shares = [labels[label] / total if total else 1 / len(chosen) for label in chosen]
    best = max(range(len(shares)), key=shares.__getitem__)
    if abstain is not None and shares[best] < abstain:
        return RefusalAnswer(name=question.name)
    return ChoiceAnswer(
        name=question.name,
        choice=values[best],
        confidence=shares[best],
        probabilities=[ChoiceProbability(value=v, probability=p) for v, p in zip(values, shares, strict=True)],
    )


def _label(value: Value, labels: Mapping[str, float], where: str) -> str:
    spelled = str(value).lower()
    same = [label for label in labels if label == value or (isinstance(value, bool) and label.lower() == spelled)]
    if not same:
        raise BadRow(f"{where}: {value!r} is not a label of this task; {nearest(str(value), labels)}")
    return same[0]
