"""Numbers at the ends of what settings and data can be: a typed error, or the right result and a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bmtpt.api.task import Task
from bmtpt.artifacts.saved import Posterior
from bmtpt.backbone import Backbone
from bmtpt.errors import BackboneError, DataError, SettingsError, TrainingError
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.rows import target_rows
from bmtpt.stages.source import learn
from bmtpt.stages.target import adapt, adapt_together
from bmtpt.tasks import TaskData

QUICK = {"steps": 2, "evaluate_every": 2, "batch_size": 2, "learning_rate": 0.1}
D = 24


def learning(**changes: Any) -> LearnSettings:
    return LearnSettings(**{**QUICK, "particles": 2, "prompt_length": 3, "validation_rows": 4, **changes})


def adapting(**changes: Any) -> AdaptSettings:
    return AdaptSettings(**{**QUICK, "prior_std_grid": (5.0,), **changes})


def task(texts: list[str], labels: list[str], **keys: Any) -> TaskData:
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    return Task(rows, "sentence: {text}", labels=["positive", "negative"], **keys).data()


@pytest.fixture(scope="module")
def source(tiny_tasks) -> TaskData:
    return tiny_tasks["sentiment"]


@pytest.fixture(scope="module")
def posterior(tiny_backbone, source) -> Posterior:
    return learn(tiny_backbone, [source], learning())


@pytest.fixture(scope="module")
def short_gpt2(tiny_backbone) -> Backbone:
    """A decoder-only model of 64 positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=160, n_positions=64, n_embd=24, n_layer=1, n_head=2, eos_token_id=1, bos_token_id=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    return Backbone.from_model(model, tiny_backbone.tokenizer, engine="packed")


@pytest.mark.parametrize("shape", [{"prompt_length": 1}, {"prompt_length": 104}, {"particles": 1}, {"particles": 64}])
def test_the_smallest_and_the_largest_shapes_learn_and_adapt(tiny_backbone, source, tiny_tasks, shape):
    found = learn(tiny_backbone, [source], learning(**shape))
    M, P = shape.get("particles", 2), shape.get("prompt_length", 3)
    assert found.particles.shape == (M, P, D)
    assert bool(found.particles.isfinite().all())
    (own,) = found.card.diagnostics["particle_nll"].values()
    assert len(own) == M
    if M == 1:
        assert found.card.diagnostics["mean_gap"] == pytest.approx(0, abs=1e-6)
    prompt = adapt(found, tiny_tasks["pairs"], adapting(), backbone=tiny_backbone)
    assert prompt.prompts.shape == (1, P, D)


def test_more_prompt_rows_than_tokens_or_positions_are_refused(tiny_backbone, short_gpt2, source):
    with pytest.raises(SettingsError, match="prompt_length is 5000: give 1 to 104, the number of tokens to draw from"):
        learn(tiny_backbone, [source], learning(prompt_length=5_000))
    with pytest.raises(BackboneError, match=r"has 64 positions and prompt, text and answer need \d+: set a lower max_"):
        learn(short_gpt2, [source], learning(prompt_length=60))


HUGE = [
    ("particles", 10**20, "less than 2147483648"),
    ("steps", 10**20, "less than 2147483648"),
    ("bandwidth", 1e-320, "between 1e-30 and 1e30"),
    ("bandwidth", 1e300, "between 1e-30 and 1e30"),
    ("likelihood_scale", 1e300, "between 1e-30 and 1e30"),
    ("learning_rate", 1e300, "between 1e-30 and 1e30"),
    ("init_jitter", 1e300, "between 1e-15 and 1e15"),
    ("warmup_steps", 2, "give less than steps"),
]


@pytest.mark.parametrize(("name", "value", "part"), HUGE)
def test_a_number_that_float32_or_torch_cannot_take_is_refused(name, value, part):
    with pytest.raises(SettingsError, match=part.replace("1e", r"1e\+?")):
        learning(**{name: value})


@pytest.mark.parametrize("std", [1e-20, 1e20])
def test_a_prior_whose_variance_float32_cannot_hold_is_refused(std):
    for setting in ({"prior_std": std}, {"prior_std_grid": (1.0, std)}):
        with pytest.raises(SettingsError, match="between 1e-15 and"):
            adapting(**setting)


@pytest.mark.parametrize("std", [1e-15, 1e15])
def test_the_narrowest_and_the_widest_prior_train(tiny_backbone, posterior, tiny_tasks, std):
    settings = adapting(prior_std=std, start="mean", selection="none")
    prompt = adapt(posterior, tiny_tasks["pairs"], settings, backbone=tiny_backbone)
    assert bool(prompt.prompts.isfinite().all())


def test_a_prompt_whose_factors_are_finite_and_whose_product_is_not_is_refused(tiny_backbone, posterior, tiny_tasks):
    settings = adapting(prior_std=1e-15, start="mean", selection="none", optimiser="sgd")
    with pytest.raises(TrainingError, match=r"the prompt for pairs is not finite|not a finite number"):
        adapt(posterior, tiny_tasks["pairs"], settings, backbone=tiny_backbone)


def test_a_task_of_one_class_and_one_of_empty_texts_are_refused():
    with pytest.raises(DataError, match="every training row has the label 'positive'"):
        task(["a film", "a book"] * 4, ["positive"] * 8, split="none")
    with pytest.raises(DataError, match="every training text is empty"):
        Task([{"text": " ", "label": label} for label in ["positive", "negative"] * 4], "{text}", split="none")


def test_more_shots_than_rows_are_refused(tiny_backbone, tiny_tasks):
    with pytest.raises(DataError, match="target pairs: cannot draw 25 examples from 24; ask for 1 to 24 shots"):
        target_rows(tiny_backbone, tiny_tasks["pairs"], adapting(shots=25))


def test_shots_that_leave_a_label_out_are_told(tiny_backbone, tiny_tasks, caplog):
    target_rows(tiny_backbone, tiny_tasks["pairs"], adapting(shots=1))
    assert "target pairs: of its 1 training rows none has the label" in caplog.text
    assert "give more shots, or draw 'balanced'" in caplog.text
    caplog.clear()
    target_rows(tiny_backbone, tiny_tasks["pairs"], adapting(shots=1, draw="balanced"))
    assert caplog.text.rstrip().endswith("give more shots")
    caplog.clear()
    target_rows(tiny_backbone, tiny_tasks["pairs"], adapting(shots=2, draw="balanced"))
    assert caplog.text == ""


def test_a_text_of_one_token_trains_and_every_cut_text_is_counted(tiny_backbone, tiny_tasks):
    found = learn(tiny_backbone, [tiny_tasks["pairs"]], learning(max_length=1))
    assert found.card.diagnostics["texts_cut"] == {"pairs": 24}
    assert bool(found.particles.isfinite().all())


def test_a_batch_larger_than_all_targets_is_told_and_takes_no_row_twice(
    tiny_backbone, posterior, tiny_tasks, caplog, monkeypatch
):
    from bmtpt.methods.target import TargetPrompts

    drawn: list[int] = []
    backward = TargetPrompts.backward

    def counted(stage: TargetPrompts, batches: Any, step: int) -> Any:
        drawn.extend(len(batch) for batch in batches.values())
        return backward(stage, batches, step)

    monkeypatch.setattr(TargetPrompts, "backward", counted)
    targets = [tiny_tasks["pairs"], tiny_tasks["answers"]]
    adapt_together(posterior, targets, adapting(batch_size=10_000), backbone=tiny_backbone)
    assert drawn == [24] * 4
    assert "batch_size is 10,000, and the targets have 48 training rows" in caplog.text


def test_a_source_with_a_single_row_to_train_on_learns(tiny_backbone, source):
    found = learn(tiny_backbone, [replace(source, train=source.train[:1])], learning(batch_size=1))
    assert bool(found.particles.isfinite().all())
