"""`bmtpt predict` with the prompts of several tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

ROWS = [
    {"task": "pairs", "premise": "anna sees the film .", "hypothesis": "anna sees the dog ."},
    {"task": "sentiment", "sentence": "the film is good ."},
    {"task": "sentiment", "sentence": "the meal is cold ."},
    {"hypothesis": "ben likes the cat .", "task": "pairs", "premise": "ben likes the cat ."},
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, runs: Path, tiny_task_folder: Path) -> Path:
    """A prompt for `pairs`, longer than the one for `sentiment`."""
    from bmtpt.artifacts.saved import Prompt
    from bmtpt.tasks import load_task

    task = load_task(tiny_task_folder / "pairs.yaml").model_dump(mode="json")
    card = Prompt.load(runs / "prompt").card.model_copy(update={"task": "pairs", "task_definition": task})
    folder = tmp_path_factory.mktemp("pairs")
    Prompt(torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(0)), card).save(folder)
    return folder


def as_lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_each_row_is_answered_in_order_with_the_prompt_of_its_task(bmtpt, runs, pairs):
    prompts = {"sentiment": runs / "prompt", "pairs": pairs}
    options = [word for folder in prompts.values() for word in ("--prompt", folder)]
    ran = bmtpt("predict", *options, "--precision", "float32", stdin=as_lines(ROWS))
    assert ran.code == 0, ran.err
    answers = [json.loads(line) for line in ran.out.splitlines()]
    assert [answer.pop("task") for answer in answers] == [row["task"] for row in ROWS]
    for task, folder in prompts.items():
        own = as_lines([row for row in ROWS if row["task"] == task])
        alone = bmtpt("predict", "--prompt", folder, "--precision", "float32", stdin=own)
        wanted = [json.loads(line) for line in alone.out.splitlines()]
        found = [answer for answer, row in zip(answers, ROWS, strict=True) if row["task"] == task]
        assert len(found) == len(wanted) == 2
        for answer, other in zip(found, wanted, strict=True):
            assert {key: answer[key] for key in ("text", "label")} == {key: other[key] for key in ("text", "label")}
            assert answer["all"] == pytest.approx(other["all"], abs=1e-5)


def test_prompts_can_be_listed_in_a_file_of_options(bmtpt, runs, pairs, tmp_path):
    config = tmp_path / "predict.yaml"
    config.write_text(f"prompt: [{runs / 'prompt'}, {pairs}]\nprecision: float32\n")
    ran = bmtpt("predict", "--config", config, stdin=as_lines(ROWS))
    assert [json.loads(line)["task"] for line in ran.out.splitlines()] == [row["task"] for row in ROWS]
    config.write_text(f"prompt: {runs / 'prompt'}\n")
    ran = bmtpt("predict", "--config", config, stdin="the film is good .\n")
    assert len(ran.out.splitlines()) == 1, ran.err


def test_two_prompts_for_one_task_are_refused_by_both_folders(bmtpt, runs, pairs):
    other = runs / "post" / ".." / "prompt"
    ran = bmtpt("predict", "--prompt", runs / "prompt", "--prompt", pairs, "--prompt", other, stdin=as_lines(ROWS))
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert all(part in ran.err for part in (f"{runs / 'prompt'} and {other}", "'sentiment'"))


def test_a_row_of_an_unknown_task_is_refused_with_file_and_line(bmtpt, runs, pairs, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(as_lines([ROWS[0], {**ROWS[1], "task": "pair"}]))
    ran = bmtpt("predict", "--prompt", runs / "prompt", "--prompt", pairs, file)
    assert ran.code == 2
    assert "rows.jsonl, line 2: no prompt is given for task 'pair'; did you mean 'pairs'?" in ran.err
