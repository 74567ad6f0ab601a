"""The answers that the documents on serving show have the fields of real ones; `conftest.py` runs their commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

DOCS = Path(__file__).parents[2] / "docs"
SHOWN = re.compile(r"-d '(\{[^']*\})'\n```\n[^`]*?```json\n(.*?)\n```", re.DOTALL)
"""A request to /predict, and the answer under it."""
EXAMPLES = [found for page in ("serve-your-tasks.md", "serve.md") for found in SHOWN.findall((DOCS / page).read_text())]


@pytest.mark.parametrize(("request_shown", "answer_shown"), EXAMPLES)
def test_answers_have_the_fields_that_the_documents_show(request_shown, answer_shown, url):
    """The numbers are those of a real model; names, order and kinds of the fields are every model's."""
    asked = {**json.loads(request_shown), "task": "sentiment"}
    shown, found = json.loads(answer_shown), httpx.post(f"{url}/predict", json=asked).json()
    assert [list(each) for each in found["answers"]] == [list(each) for each in shown["answers"]]
    kinds = {type(value) for each in shown["answers"] for value in each["all"].values()}
    assert {type(value) for each in found["answers"] for value in (each["all"] or {}).values()} <= kinds


def test_both_pages_show_answers():
    assert len(EXAMPLES) == 3
