"""What the routes share in the API's description: rows, the names of prompts, and refusals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Discriminator, Field, Tag

from bmtpt.serve.service import Service

PROMPT = "prompt-name"
"""Format of a name in the description."""

PromptName = Annotated[str, Field(description="Name of a loaded prompt.", json_schema_extra={"format": PROMPT})]
Probability = Annotated[float, Field(ge=0, le=1)]

KINDS = {str: "(text)", dict: "(object)", list: "(list)", bool: "(boolean)"}
"""Kinds of JSON values, as tags of unions. Parentheses mark what is no part of the place in an error."""


def either(what: str) -> Discriminator:
    """Return what tells the members of a union of JSON types apart, so that only one of them complains.

    Args:
        what: What to give, for the sentence that refuses a value of another kind.
    """
    return Discriminator(
        lambda value: KINDS.get(type(value)), custom_error_type="kind", custom_error_message=f"give {what}"
    )


Text = Annotated[str, Tag(KINDS[str])]
Columns = Annotated[dict[str, Any], Tag(KINDS[dict])]
RowInput = Annotated[Text | Columns, either("a text, or an object with the columns of the task")]
Rows = Annotated[
    Text | Columns | Annotated[list[RowInput], Tag(KINDS[list]), Field(min_length=1)],
    either("a text, an object with the columns of the task, or a list of them"),
]


class Problem(BaseModel):
    """One sentence for people, and a word for programs."""

    message: str
    type: str


class Refusal(BaseModel):
    """Why a request was refused, in the shape that clients of OpenAI's API read."""

    error: Problem


REFUSALS = {
    400: "The body is not JSON in UTF-8.",
    401: "A token is needed, or this one is not known.",
    403: "The token does not allow it, or a page of another site asks.",
    404: "No prompt of this name is loaded.",
    408: "The body came too slowly.",
    413: "The body or one of its texts is too large.",
    422: "A field or a row is wrong; the sentence says which.",
    429: "The queue is full; ask again after the seconds in Retry-After.",
    503: "The deadline passed, or the server is about to stop.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return a route's refusals for its description; without statuses, those of a route that answers rows."""
    return {status: {"model": Refusal, "description": REFUSALS[status]} for status in statuses or REFUSALS}


def invalid(errors: Sequence[Any]) -> str:
    """Say in one sentence where a request differs from its description.

    Args:
        errors: Of pydantic; the place of the first is named.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']}"
    place = ""
    for step in first["loc"][1:]:  # the first says body, path or query
        if isinstance(step, int):
            place += f"[{step}]"
        elif not step.startswith("("):
            place += f".{step}" if place else step
    reason = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{place or 'the body'}: {reason[:1].lower()}{reason[1:]}{more}"


def describe_with_names(app: FastAPI, service: Service) -> None:
    """Have the API's description give the names of the loaded prompts as examples."""
    described: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not described:
            described.update(get_openapi(title=app.title, version=app.version, routes=app.routes))
        names = sorted(service.shelf.snapshot())
        for node in _nodes(described):
            if node.get("format") == PROMPT:
                node["examples"] = names
        return described

    app.openapi = openapi  # type: ignore[method-assign]


def _nodes(value: Any) -> Iterable[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _nodes(each)
