"""The harness is a large extra: where it is missing, only what needs none of it is tested."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import bmtpt.lm_eval as ours
from bmtpt.artifacts.saved import Prompt
from bmtpt.errors import DataError, SettingsError
from bmtpt.lm_eval import PromptLM, write_task
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.evaluate import evaluate
from bmtpt.stages.source import learn
from bmtpt.stages.target import adapt
from bmtpt.tasks import TaskData
from bmtpt.tasks.tokens import tokenise, tokenise_answer

QUICK = {"steps": 3, "evaluate_every": 3, "batch_size": 2}


@pytest.fixture(scope="module")
def posterior(tiny_backbone, tiny_tasks):
    pytest.importorskip("lm_eval")
    return learn(tiny_backbone, [tiny_tasks["pairs"]], LearnSettings(**QUICK, particles=2, prompt_length=4))


@pytest.fixture(scope="module")
def prompts(posterior, tiny_backbone, tiny_tasks) -> dict[str, Prompt]:
    ways: dict[str, Any] = {
        "plain": {"readout": "none"},
        "read out": {"readout": "linear", "calibrate": "temperature"},
        "ensemble": {"readout": "none", "average": "start", "start": "particles"},
        "normalised": {"readout": "none", "normalise": "pmi"},
    }
    return {
        name: adapt(
            posterior,
            tiny_tasks["sentiment"],
            AdaptSettings(**QUICK, shots=8, prior_std_grid=(5.0,), **way),
            backbone=tiny_backbone,
        )
        for name, way in ways.items()
    }


@dataclass
class Request:
    """What the harness hands over."""

    args: tuple[Any, ...]
    doc: Any = None


def requests_of(data: TaskData, *answers: str) -> list[Request]:
    return [Request((row.text, answer)) for row in data.test for answer in answers]


@pytest.fixture
def model(prompts, tiny_backbone):
    def made(name: str) -> PromptLM:
        return PromptLM(prompts[name], tiny_backbone)

    return made


@pytest.mark.parametrize("name", ["plain", "read out", "ensemble", "normalised"])
def test_the_harness_and_evaluate_give_one_score(name, model, prompts, tiny_backbone, tiny_tasks, tmp_path):
    harness = pytest.importorskip("lm_eval")
    data = tiny_tasks["sentiment"]
    long = replace(data.test[0], before="sentiment ", context="the film is good . " * 90, after=" is dull ?")
    data = replace(data, test=(*data.test, long))  # cut in its context, not at its end
    wanted = evaluate(tiny_backbone, prompts[name], data.test)
    found = harness.simple_evaluate(
        model=model(name),
        tasks=[write_task(data, tmp_path)],
        task_manager=harness.tasks.TaskManager(include_defaults=False),  # or it reads thousands of files
        bootstrap_iters=0,
    )
    scores = found["results"]["bmtpt_sentiment"]
    assert scores["acc,none"] == pytest.approx(wanted.metrics["accuracy"] / 100)
    assert scores["f1,none"] == pytest.approx(wanted.metrics["f1"] / 100)
    samples = sorted(found["samples"]["bmtpt_sentiment"], key=lambda sample: sample["doc_id"])
    logs = torch.tensor([[score for score, _ in sample["filtered_resps"]] for sample in samples])
    torch.testing.assert_close(logs.exp(), wanted.probabilities, rtol=1e-4, atol=1e-6)


def test_answers_that_are_no_label_words_are_scored_by_their_likelihood(model, prompts, tiny_backbone, tiny_tasks):
    data = tiny_tasks["sentiment"]
    found = model("plain").loglikelihood(requests_of(data, " anna", "good"))
    ids = tokenise(tiny_backbone, data.test, 256).batch.inputs
    tokens = [tokenise_answer(tiny_backbone, word) for word in ("anna", "good")]
    wanted = tiny_backbone.engine.answer_log_likelihoods(prompts["plain"].prompts, ids, tokens)[0]
    assert [score for score, _ in found] == pytest.approx(wanted.flatten().tolist(), rel=1e-5)
    (written,) = tiny_backbone.engine.generate(prompts["plain"].prompts, ids, 8)
    answer = str(written[0])
    ((_, greedy), (_, other)) = model("plain").loglikelihood(requests_of(data, answer, "anna good")[:2])
    assert (greedy, other) == (written[0].ended and len(tokenise_answer(tiny_backbone, answer)) <= 8, False)


def test_a_text_is_generated_up_to_the_first_stop(prompts, tiny_backbone, tiny_tasks):
    text = tiny_tasks["sentiment"].test[0].text
    ids = tokenise(tiny_backbone, tiny_tasks["sentiment"].test[:1], 256).batch.inputs
    draws = (torch.randint(3, 100, (1, 4), generator=torch.Generator().manual_seed(seed)) for seed in range(50))
    written = ((rows, tiny_backbone.engine.generate(rows, ids, 5)[0][0]) for rows in map(tiny_backbone.embed, draws))
    rows, whole = next((rows, whole) for rows, whole in written if len(set(whole.split())) > 1)  # of several words
    stop = whole.split()[-1]
    requests = [Request((text, {"until": until, "max_gen_toks": 5})) for until in ([], [stop], stop)]
    model = PromptLM(replace(prompts["plain"], prompts=rows), tiny_backbone)
    assert model.generate_until(requests) == [whole, whole.split(stop)[0], whole.split(stop)[0]]


def test_what_a_prompt_cannot_do_is_refused_in_one_sentence(model, tiny_tasks):
    data = tiny_tasks["sentiment"]
    with pytest.raises(SettingsError, match="an ensemble scores only the label words of task sentiment"):
        model("ensemble").loglikelihood(requests_of(data, "anna"))
    with pytest.raises(SettingsError, match="a prompt with a readout or a temperature writes no texts"):
        model("read out").generate_until([Request(("a", {}))])
    with pytest.raises(SettingsError, match="answers greedily"):
        model("plain").generate_until([Request(("a", {"do_sample": True}))])
    with pytest.raises(SettingsError, match="no probability of a text alone"):
        model("plain").loglikelihood_rolling([Request(("a",))])


def test_a_missing_harness_names_the_pip_command(monkeypatch):
    monkeypatch.setattr(ours, "LM", object)
    with pytest.raises(SettingsError, match=r"pip install 'bmtpt\[lm-eval\]'"):
        PromptLM("nowhere")


def test_a_task_is_written_as_the_harness_reads_it(tiny_tasks, tmp_path: Path):
    definition = write_task(tiny_tasks["sentiment"], tmp_path)
    assert yaml.safe_load((tmp_path / "bmtpt_sentiment.yaml").read_text()) == definition
    rows = [json.loads(line) for line in (tmp_path / "sentiment.jsonl").read_text().splitlines()]
    test = tiny_tasks["sentiment"].test
    assert [(row["text"], definition["doc_to_choice"][row["label"]]) for row in rows] == [
        (e.text, e.target) for e in test
    ]
    assert [metric["metric"] for metric in definition["metric_list"]] == ["acc", "f1"]
    assert definition["target_delimiter"] == ""
    with pytest.raises(SettingsError, match="answers has no fixed label words"):
        write_task(tiny_tasks["answers"], tmp_path)
    with pytest.raises(DataError, match="no rows in its part 'test'"):
        write_task(replace(tiny_tasks["sentiment"], test=()), tmp_path)
