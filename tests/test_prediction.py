"""Answers to new texts: the lines they come in, and that they are those of an evaluation."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from bmtpt.api import adapt, evaluate, learn
from bmtpt.artifacts import Posterior, Prompt
from bmtpt.errors import BackboneError, DataError
from bmtpt.prediction import BATCH, predict, read_rows
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.tasks import TaskData, load_task

QUICK = {"steps": 2, "evaluate_every": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def posterior(tiny_backbone, tiny_tasks) -> Posterior:
    settings = LearnSettings(particles=2, prompt_length=3, validation_rows=2, **QUICK)
    return learn(tiny_backbone, [tiny_tasks["sentiment"]], settings)


def trained(posterior: Posterior, target: TaskData, backbone, **changes: object) -> Prompt:
    settings = AdaptSettings.model_validate({**QUICK, "prior": "none", **changes})
    return adapt(posterior, target, settings, backbone=backbone)


def json_lines(data: TaskData) -> list[str]:
    """The test rows of `pairs` as a user would write them."""
    found = []
    for example in data.test:
        premise, hypothesis = example.context, example.after.removeprefix(" hypothesis: ")
        found.append(json.dumps({"premise": premise, "hypothesis": hypothesis}) + "\n")
    return found


@pytest.mark.parametrize("changes", [{}, {"ensemble": True}, {"max_length": 8}])
def test_predicted_labels_are_those_of_the_evaluation(changes, posterior, tiny_backbone, tiny_tasks):
    data = tiny_tasks["pairs"]
    prompt = trained(posterior, data, tiny_backbone, **changes)
    assert len(prompt.prompts) == (2 if changes.get("ensemble") else 1)
    wanted = evaluate(tiny_backbone, prompt, data.test)
    answers = list(predict(tiny_backbone, prompt, read_rows(json_lines(data), data.task)))
    assert [answer["label"] for answer in answers] == wanted.predictions
    assert [answer["text"] for answer in answers] == [example.text for example in data.test]
    for answer, row in zip(answers, wanted.probabilities.tolist(), strict=True):
        assert list(answer["all"].values()) == pytest.approx(row, abs=1e-6)
        assert answer["probability"] == max(answer["all"].values())
        assert sum(answer["all"].values()) == pytest.approx(1)
        assert list(answer["all"]) == list(data.task.label_words)


def test_free_answers_are_those_of_the_evaluation(posterior, tiny_backbone, tiny_tasks):
    data = tiny_tasks["answers"]
    prompt = trained(posterior, data, tiny_backbone)
    answers = list(predict(tiny_backbone, prompt, data.test))
    assert all(set(answer) == {"text", "label"} for answer in answers)
    # A longer answer is allowed here than in an evaluation, which stops behind the longest right one.
    wanted = evaluate(tiny_backbone, prompt, data.test).predictions
    assert all(answer["label"].startswith(text) for answer, text in zip(answers, wanted, strict=True))


def test_answers_stream_in_order_and_in_batches(posterior, tiny_backbone, tiny_tasks):
    data = tiny_tasks["sentiment"]
    prompt = trained(posterior, data, tiny_backbone)
    read = []

    def examples():
        for i in range(2 * BATCH + 5):
            read.append(i)
            yield data.test[i % len(data.test)]

    answers = predict(tiny_backbone, prompt, examples())
    first = next(answers)
    assert len(read) == BATCH
    rest = list(answers)
    assert [answer["text"] for answer in [first, *rest]] == [data.test[i % len(data.test)].text for i in read]
    assert len(rest) == 2 * BATCH + 4


def test_plain_text_is_taken_where_a_task_has_one_column(tiny_task_folder):
    task = load_task(tiny_task_folder / "sentiment.yaml")
    lines = ["the film is good .\n", "\n", '{"sentence": "the film is bad ."}\n']
    assert [example.text for example in read_rows(lines, task)] == [
        "sentiment sentence: the film is good .",
        "sentiment sentence: the film is bad .",
    ]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"premise": "a", "hypothesis"', ["not valid JSON"]),
        ('{"premise": "a"}', ["hypothesis"]),
        ('{"premise": "a", "hypothesis": null}', ["hypothesis"]),
        ("plain text", ["pairs", "JSON lines", "premise, hypothesis"]),
        ("[1, 2]", ["JSON lines", "premise, hypothesis"]),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tiny_task_folder, line, parts):
    task = load_task(tiny_task_folder / "pairs.yaml")
    good = '{"premise": "a", "hypothesis": "b"}'
    rows = read_rows([good, "", line], task, source="new.jsonl")
    assert next(rows).text == "pairs premise: a hypothesis: b"
    with pytest.raises(DataError) as error:
        next(rows)
    sentence = str(error.value)
    assert sentence.startswith("new.jsonl, line 3")
    assert all(part in sentence for part in parts), sentence
    assert "\n" not in sentence


def test_rows_that_need_preparation_are_prepared():
    row = {
        "text": "Mark told Pete lies",
        "span1_index": 0,
        "span1_text": "Mark",
        "span2_index": 2,
        "span2_text": "Pete",
    }
    (example,) = read_rows([json.dumps(row)], load_task("wsc"))
    assert "* Mark * told # Pete # lies" in example.text


def test_a_prompt_of_another_model_is_refused(posterior, tiny_backbone, tiny_tasks):
    prompt = trained(posterior, tiny_tasks["sentiment"], tiny_backbone)
    other = replace(tiny_backbone, fingerprint="0" * 64, name="other")
    with pytest.raises(BackboneError, match="'other'"):
        next(predict(other, prompt, tiny_tasks["sentiment"].test))


def test_a_saved_prompt_predicts_as_before(posterior, tiny_backbone, tiny_tasks, tmp_path):
    data = tiny_tasks["sentiment"]
    prompt = trained(posterior, data, tiny_backbone)
    prompt.save(tmp_path)
    again = list(predict(tiny_backbone, Prompt.load(tmp_path), data.test))
    assert again == list(predict(tiny_backbone, prompt, data.test))
    assert torch.equal(Prompt.load(tmp_path).prompts, prompt.prompts)
