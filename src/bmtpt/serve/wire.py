"""What goes over the wire and is read at both ends, by the routes and by the client."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Predicted(BaseModel):
    """The answer to a row, with the field names of `bmtpt predict`.

    Attributes:
        label: The likeliest label, or the text that the prompt wrote; null if the request's `abstain` rules it out.
        probability: Of the likeliest label; null if the answer was written.
        all: The probability of each label.
        spread: Their standard deviations over an ensemble; null for a single prompt, or if it was not asked for.
        cut: Whether the text was too long and cut.
        answer_cut: Whether the written answer was.
    """

    task: str
    label: str | None
    probability: float | None
    all: dict[str, float] | None
    spread: dict[str, float] | None
    cut: bool
    answer_cut: bool


class Model(BaseModel):
    """A loaded prompt.

    Attributes:
        created: When it was trained, in seconds since 1970.
        labels: What it chooses from; empty if it writes its answers.
        columns: What a row needs; a task of one column also takes plain texts.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["bmtpt"] = "bmtpt"
    labels: list[str]
    columns: list[str]
