"""Answers to new texts are those of an evaluation, whatever comes with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmtpt.artifacts.saved import Posterior, Prompt
from bmtpt.backbone.fast_t5.engine import PackedT5Engine
from bmtpt.errors import BackboneError, DataError, SettingsError
from bmtpt.inference.predict import BATCH, answered, predict
from bmtpt.inference.rows import Asked, examples_of
from bmtpt.inference.score import ANSWER_ROOM, ANSWER_TOKENS
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.evaluate import evaluate
from bmtpt.stages.source import learn
from bmtpt.stages.target import adapt
from bmtpt.tasks import TaskData

QUICK = {"steps": 2, "evaluate_every": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def posterior(tiny_backbone, tiny_tasks) -> Posterior:
    settings = LearnSettings(particles=2, prompt_length=3, validation_rows=2, **QUICK)
    return learn(tiny_backbone, [tiny_tasks["sentiment"]], settings)


def trained(posterior: Posterior, target: TaskData, backbone, **changes: object) -> Prompt:
    settings = AdaptSettings.model_validate({**QUICK, "prior": "none", "readout": "none", **changes})
    return adapt(posterior, target, settings, backbone=backbone)


def rows_of(data: TaskData) -> list[dict[str, str]]:
    """The test rows of `pairs` as a user would give them."""
    pairs = [(example.context, example.after.removeprefix(" hypothesis: ")) for example in data.test]
    return [{"premise": premise, "hypothesis": hypothesis} for premise, hypothesis in pairs]


@pytest.mark.parametrize("changes", [{}, {"ensemble": True}, {"max_length": 8}])
def test_predicted_labels_are_those_of_the_evaluation(changes, posterior, tiny_backbone, tiny_tasks):
    data = tiny_tasks["pairs"]
    prompt = trained(posterior, data, tiny_backbone, **changes)
    assert len(prompt.prompts) == (2 if changes.get("ensemble") else 1)
    wanted = evaluate(tiny_backbone, prompt, data.test)
    answers = list(predict(tiny_backbone, prompt, examples_of(rows_of(data), data.task)))
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


def test_a_prompt_is_read_as_it_was_selected_unless_another_way_is_asked_for(posterior, tiny_backbone, tiny_tasks):
    data = tiny_tasks["sentiment"]
    longer = data.task.model_copy(update={"labels": {"0": "bad", "1": "very very good"}})
    words = [replace(each, target=longer.label_words[each.label or 0]) for each in (*data.train, *data.test)]
    data = replace(data, task=longer, train=tuple(words[:24]), test=tuple(words[24:]))
    shares = {}
    for way in ("none", "length", "pmi"):
        prompt = trained(posterior, data, tiny_backbone, normalise=way, selection="none")
        assert prompt.card.settings["normalise"] == way
        own = [answer["all"] for answer in predict(tiny_backbone, prompt, data.test)]
        assert own == [answer["all"] for answer in predict(tiny_backbone, prompt, data.test, way)]
        evaluated = evaluate(tiny_backbone, prompt, data.test).probabilities.tolist()
        assert [list(row.values()) for row in own] == [pytest.approx(row, abs=1e-6) for row in evaluated]
        shares[way] = own
    assert shares["none"] != shares["length"] != shares["pmi"]


def test_a_readout_is_only_read_in_the_way_that_it_was_fitted(posterior, tiny_backbone, tiny_tasks):
    data = tiny_tasks["sentiment"]
    prompt = trained(posterior, data, tiny_backbone, readout="offset")
    assert prompt.readouts
    with pytest.raises(SettingsError, match=r"fitted with normalise 'none' and cannot be read with 'length'"):
        next(predict(tiny_backbone, prompt, data.test, "length"))
    with pytest.raises(SettingsError, match=r"cannot be read with 'pmi'"):
        evaluate(tiny_backbone, prompt, data.test, normalise="pmi")
    assert len(list(predict(tiny_backbone, prompt, data.test, "none"))) == len(data.test)


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


def test_an_example_without_a_prompt_and_a_prompt_of_another_model_are_refused(several, tiny_backbone, tiny_tasks):
    with pytest.raises(DataError, match=r"task 'sentimen'.*did you mean 'sentiment'"):
        next(predict(tiny_backbone, several, [("sentimen", tiny_tasks["sentiment"].test[0])]))
    other = replace(tiny_backbone, fingerprint="0" * 64, name="other")
    with pytest.raises(BackboneError, match=r"prompt for task answers.*'other'"):
        next(predict(other, several, []))


# Rows that cannot be answered


def test_a_row_that_cannot_be_answered_has_its_error_and_the_others_their_answers(several, tiny_backbone, tiny_tasks):
    test = tiny_tasks["sentiment"].test
    wrong = DataError("rows.csv, line 3: column 'sentence' is empty")
    half = replace(test[0], before="a \ud800 b")
    rows = [Asked("1", "sentiment", test[0]), Asked("2", "sentiment", wrong), Asked("line 3", "sentiment", half)]
    rows += [Asked("4", "pair", test[0]), Asked("5", "sentiment", test[1])]
    found = [answer for _, answer in answered(tiny_backbone, several, rows)]
    alone = list(predict(tiny_backbone, several["sentiment"], test[:2]))
    assert [found[0], found[4]] == [close_to(each) for each in alone]
    assert found[1] is wrong
    assert str(found[2]).startswith("line 3: the text holds \\ud800")
    assert "'pair', which has no prompt; did you mean 'pairs'" in str(found[3])


def test_the_answers_before_a_failing_source_come_before_its_error(several, tiny_backbone, tiny_tasks):
    def source() -> Iterator[Asked]:
        yield Asked("1", "sentiment", tiny_tasks["sentiment"].test[0])
        raise DataError("the file is damaged")

    answers = answered(tiny_backbone, several, source())
    assert isinstance(next(answers)[1], dict)
    with pytest.raises(DataError, match="damaged"):
        next(answers)
