"""Answers to new texts: the lines they come in, and that they are those of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmtpt.artifacts.saved import Posterior, Prompt
from bmtpt.backbone.fast_t5.engine import PackedT5Engine
from bmtpt.errors import BackboneError, DataError
from bmtpt.inference.predict import BATCH, predict, read_rows, read_task_rows
from bmtpt.inference.score import ANSWER_ROOM, ANSWER_TOKENS
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.evaluate import evaluate
from bmtpt.stages.source import learn
from bmtpt.stages.target import adapt
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
    assert all(set(answer) - {"answer_cut"} == {"text", "label"} for answer in answers)
    found = evaluate(tiny_backbone, prompt, data.test)
    assert [answer["label"] for answer in answers] == found.predictions
    assert sum("answer_cut" in answer for answer in answers) == found.answers_cut


@pytest.mark.parametrize("limit", [1, 3, 40, None])
def test_an_answer_that_the_limit_cut_says_so(limit, posterior, tiny_backbone, tiny_hf, tiny_tasks):
    data = tiny_tasks["answers"]
    prompt = trained(posterior, data, tiny_backbone)
    prompt = replace(prompt, card=prompt.card.model_copy(update={"answer_tokens": limit}))  # None: of version 1
    answers = list(predict(tiny_backbone, prompt, data.test))
    for answer, example in zip(answers, data.test, strict=True):
        ids = torch.tensor(tiny_backbone.tokenizer(example.text).input_ids)
        embedded = torch.cat([prompt.prompts[0], tiny_hf.shared(ids)])[None]
        most = limit or ANSWER_TOKENS
        mask = torch.ones(1, embedded.shape[1])
        out = tiny_hf.generate(inputs_embeds=embedded, attention_mask=mask, max_new_tokens=most, do_sample=False)
        assert answer["label"] == tiny_backbone.tokenizer.decode(out[0], skip_special_tokens=True).strip()
        assert answer.get("answer_cut", False) == (1 not in out[0].tolist())  # no end of sequence


def test_the_limit_on_answers_comes_from_the_training_answers_and_is_in_the_card(posterior, tiny_backbone, tiny_tasks):
    data = tiny_tasks["answers"]
    assert trained(posterior, data, tiny_backbone).card.answer_tokens == ANSWER_TOKENS  # its answers are short
    long = [replace(example, target="paris " * 40) for example in data.train]
    card = trained(posterior, replace(data, train=tuple(long)), tiny_backbone).card
    assert card.answer_tokens == 40 + 1 + ANSWER_ROOM


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


def assert_the_third_line_is_refused(rows: Iterator[Any], parts: Sequence[str]) -> None:
    with pytest.raises(DataError) as error:
        next(rows)
    sentence = str(error.value)
    assert sentence.startswith("new.jsonl, line 3")
    assert all(part in sentence for part in parts), sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"premise": "a", "hypothesis"', ["not valid JSON"]),
        ('{"premise": "a"}', ["hypothesis"]),
        ('{"premise": "a", "hypothesis": null}', ["hypothesis"]),
        ("plain text", ["pairs", "rows with the columns premise, hypothesis"]),
        ("[1, 2]", ["rows with the columns premise, hypothesis"]),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tiny_task_folder, line, parts):
    task = load_task(tiny_task_folder / "pairs.yaml")
    good = '{"premise": "a", "hypothesis": "b"}'
    rows = read_rows([good, "", line], task, source="new.jsonl")
    assert next(rows).text == "pairs premise: a hypothesis: b"
    assert_the_third_line_is_refused(rows, parts)


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


# Rows of several tasks in one stream


@pytest.fixture(scope="module")
def several(posterior, tiny_backbone, tiny_tasks) -> dict[str, Prompt]:
    """Prompts whose answers differ, one of them an ensemble, by task."""
    found = {}
    for k, (name, data) in enumerate(tiny_tasks.items()):
        rows = torch.randn(1 + (name == "pairs"), 2 + 3 * k, 24, generator=torch.Generator().manual_seed(k))
        found[name] = replace(trained(posterior, data, tiny_backbone), prompts=3 * rows)
    return found


def close_to(answer: dict) -> dict:
    """The answer as what another may be to 1e-5."""
    return {
        key: pytest.approx(value, abs=1e-5) if key in ("probability", "all") else value for key, value in answer.items()
    }


@settings(max_examples=8, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from(["answers", "pairs", "sentiment"]), st.integers(0, 11)), max_size=9),
    lengths=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)),
    batch=st.sampled_from([2, 64]),
)
def test_rows_of_mixed_tasks_are_answered_in_order_and_as_each_task_alone(
    rows, lengths, batch, several, tiny_backbone, tiny_tasks
):
    prompts = {
        name: replace(prompt, prompts=prompt.prompts[:, :1].repeat(1, length, 1))
        for (name, prompt), length in zip(several.items(), lengths, strict=True)
    }
    examples = [(name, tiny_tasks[name].test[i]) for name, i in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bmtpt.inference.predict.BATCH", batch)
        mixed = list(predict(tiny_backbone, prompts, examples))
    alone = {
        task: predict(tiny_backbone, prompt, [example for name, example in examples if name == task])
        for task, prompt in prompts.items()
    }
    assert mixed == [{"task": name, **close_to(next(alone[name]))} for name, _ in rows]
    assert all(next(rest, None) is None for rest in alone.values())


def test_the_prompts_of_several_tasks_share_passes(several, tiny_backbone, tiny_tasks, monkeypatch):
    examples = [(name, data.test[i]) for i in range(4) for name, data in tiny_tasks.items()]
    passes = []
    encode = PackedT5Engine.encode
    monkeypatch.setattr(PackedT5Engine, "encode", lambda *each: passes.append(len(each[1])) or encode(*each))
    answers = list(predict(tiny_backbone, several, examples))
    assert passes == [4 + 4 + 2 * 4]  # `pairs` has two prompts
    assert [answer["task"] for answer in answers] == [name for name, _ in examples]
    assert len({answer["label"] for answer in answers}) > 3


def test_lines_of_several_tasks_say_whose_they_are(tiny_tasks):
    tasks = {name: data.task for name, data in tiny_tasks.items()}
    lines = [
        '{"task": "sentiment", "sentence": "the film is bad ."}',
        "",
        '{"premise": "a", "task": "pairs", "hypothesis": "b"}',
    ]
    assert [(name, example.text) for name, example in read_task_rows(lines, tasks)] == [
        ("sentiment", "sentiment sentence: the film is bad ."),
        ("pairs", "pairs premise: a hypothesis: b"),
    ]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"sentence": "a"}', ["has no field 'task'", "answers, pairs, sentiment"]),
        ('{"task": "sentimen", "sentence": "a"}', ["'sentimen'", "did you mean 'sentiment'?"]),
        ('{"task": ["pairs"], "sentence": "a"}', ["task ['pairs']", "did you mean 'pairs'?"]),
        ('{"task": "pairs", "premise": "a"}', ["hypothesis"]),
        ('{"task": "pairs"', ["not valid JSON"]),
        ("the film is good .", ["not a JSON object", "'task'"]),
    ],
)
def test_a_line_that_names_no_known_task_is_refused_with_file_and_number(tiny_tasks, line, parts):
    tasks = {name: data.task for name, data in tiny_tasks.items()}
    good = '{"task": "sentiment", "sentence": "a"}'
    rows = read_task_rows([good, "", line], tasks, source="new.jsonl")
    assert next(rows)[0] == "sentiment"
    assert_the_third_line_is_refused(rows, parts)


def test_an_example_without_a_prompt_and_a_prompt_of_another_model_are_refused(several, tiny_backbone, tiny_tasks):
    with pytest.raises(DataError, match=r"task 'sentimen'.*did you mean 'sentiment'"):
        next(predict(tiny_backbone, several, [("sentimen", tiny_tasks["sentiment"].test[0])]))
    other = replace(tiny_backbone, fingerprint="0" * 64, name="other")
    with pytest.raises(BackboneError, match=r"prompt for task answers.*'other'"):
        next(predict(other, several, []))
