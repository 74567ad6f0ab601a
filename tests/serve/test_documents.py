"""What the documents on serving tell people to type works, and answers as they show it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bmtpt.artifacts.saved import Prompt
from bmtpt.serve.app import create_app
from bmtpt.serve.service import Service

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("serve-your-tasks.md", "serve.md")
WORDS = {"billing": "positive", "technical": "negative", "delivery": "neutral"}
"""Label words of the documents, and those that the tiny model's tokenizer has in their place."""

TASKS = {
    "tickets": {"text": "sentiment sentence: {message}", "labels": {word: word for word in WORDS.values()}},
    "sst2": {"text": "sentiment sentence: {sentence}", "labels": {"0": "negative", "1": "positive"}},
}
# What comes before a command: curl fails on a refusal, and a line end ends each answer.
SHELL = 'curl() { command curl -sS --fail-with-body "$@" && echo; }\n'


def blocks(language: str) -> list[tuple[str, str]]:
    """Return a page's code in a language, with the page's name."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(name, code) for name in PAGES for code in pattern.findall((DOCS / name).read_text(encoding="utf-8"))]


def asking(code: str) -> str:
    """Return the statements of a block from the first that asks the server on; those before it start one."""
    statements = re.split(r"\n(?=curl |python - )", f"\n{code}")
    return "\n".join(each for each in statements if "curl " in each)


@pytest.fixture(scope="module")
def shop(tiny_backbone, prompts, listen, tmp_path_factory):
    """A folder with the prompts of the documents, and where a server answers with them."""
    folder, card = tmp_path_factory.mktemp("shop"), prompts["sentiment"].card
    served = {}
    for name, changes in TASKS.items():
        task = {**card.task_definition, "name": name, "metrics": ["accuracy"], "primary": "accuracy", **changes}
        served[name] = Prompt(prompts["sentiment"].prompts, card.model_copy(update={"task_definition": task}))
        served[name].save(folder / "prompts" / name)
    with listen(create_app(Service.of(tiny_backbone, served))) as url:
        yield folder, url


def run(command: list[str], shop) -> str:
    folder, url = shop
    for word, other in {"http://127.0.0.1:8000": url, **WORDS}.items():
        command = [each.replace(word, other) for each in command]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TOKEN": "-", "HF_HUB_OFFLINE": "0"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize(("page", "code"), [(page, asking(code)) for page, code in blocks("sh") if "curl " in code])
def test_every_line_with_curl_is_answered(page, code, shop):
    answers = [json.loads(line) for line in run(["bash", "-c", SHELL + code], shop).splitlines()]
    assert len(answers) == code.count("curl ")
    assert all("error" not in answer for answer in answers)


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_every_line_of_python_runs(page, code, shop):
    assert run([sys.executable, "-c", code], shop)


def test_answers_have_the_fields_that_the_documents_show(shop):
    """The numbers are those of a real model; names, order and kinds of the fields are every model's."""
    page = PAGES[0]
    shown = [json.loads(code) for name, code in blocks("json") if name == page]
    asked = [asking(code) for name, code in blocks("sh") if name == page and "/predict" in code]
    assert len(shown) == len(asked) >= 2
    for answer, code in zip(shown, asked, strict=True):
        found = json.loads(run(["bash", "-c", SHELL + code], shop))
        assert [list(each) for each in found["answers"]] == [list(each) for each in answer["answers"]]
        assert set(found["answers"][0]["all"] or ()) <= set(TASKS["tickets"]["labels"])
