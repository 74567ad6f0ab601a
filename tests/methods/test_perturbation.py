"""Training under noise: the gradient at θ + δ, and plain prompt tuning where the noise is 0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.inference.score import make_scorer
from bmtpt.methods.perturbation import perturbed_candidates
from bmtpt.methods.prompt_tuning import plain_candidates
from bmtpt.methods.target import Candidate, TargetPrompts, TargetRows
from bmtpt.settings import AdaptSettings
from bmtpt.tasks.tokens import standard_normal, tokenise
from bmtpt.train.loop import Loop

P, D = 4, 24


@pytest.fixture(scope="module")
def train(tiny_backbone, tiny_tasks) -> Any:
    data = tiny_tasks["pairs"]
    rows = TargetRows(
        tokenise(tiny_backbone, data.train[:8], 64),
        tokenise(tiny_backbone, data.select[:2], 64),
        make_scorer(tiny_backbone, data.task),
    )

    def run(candidates: list[Candidate], **changes: Any) -> TargetPrompts:
        values = {"steps": 3, "evaluate_every": 3, "batch_size": 4, "optimiser": "sgd", "learning_rate": 0.1}
        settings = AdaptSettings.model_validate(values | changes)
        method = TargetPrompts(HuggingFaceEngine(tiny_backbone), {"pairs": rows}, candidates, None, settings)
        Loop(method, settings).run()
        return method

    return run


@pytest.fixture
def plain(tiny_backbone) -> list[Candidate]:
    return plain_candidates(tiny_backbone, P, seed=0, count=2)


def test_no_noise_is_plain_prompt_tuning_bit_for_bit(train, plain):
    without, with_zero = train(plain), train(perturbed_candidates(plain, 0.0))
    with_noisy = train(
        [*plain, replace(plain[0], noise_std=5.0)]
    )  # the third candidate's noise leaves the others alone
    for method in (with_zero, with_noisy):
        assert torch.equal(method.prompts(0)[:2], without.prompts(0))
    assert not torch.equal(with_noisy.prompts(0)[2], without.prompts(0)[0])


def test_the_gradient_is_that_at_the_perturbed_prompt(train, plain, tiny_backbone):
    method = train(perturbed_candidates(plain, 0.7), decompose=False)
    theta = method.prompts(0).detach().clone()
    for tensor in (group.tensors[0] for group in method.groups()):
        tensor.grad = None
    batches = method.draw(5)
    losses = method.backward(batches, 5)
    delta = 0.7 * standard_normal(P, D, seed=0, step=5, task=0).float()
    wanted, gradient = method.engine.gradients(theta + delta, batches["pairs"], torch.full((4,), 1 / 4))
    assert torch.equal(method.full.grad, gradient)
    assert losses["pairs"] == wanted.mean(dim=1).tolist()


def test_candidates_under_noise_train_as_if_alone(train, plain):
    together = train(perturbed_candidates(plain, 0.5))
    alone = train(perturbed_candidates(plain[1:], 0.5))
    assert torch.allclose(together.prompts(0)[1], alone.prompts(0)[0], rtol=1e-4, atol=1e-4)


def test_noise_is_standard_normal_and_a_pure_function_of_seed_step_and_task():
    draw = standard_normal(200, 300, seed=1, step=2, task=3)
    assert torch.equal(draw, standard_normal(200, 300, seed=1, step=2, task=3))
    assert draw.mean().item() == pytest.approx(0, abs=0.02)
    assert draw.std().item() == pytest.approx(1, abs=0.02)
    for seed, step, task in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        correlation = (draw * standard_normal(200, 300, seed=seed, step=step, task=task)).mean().item()
        assert correlation == pytest.approx(0, abs=0.02)


def test_the_card_names_the_noise_only_where_there_is_some(plain):
    assert perturbed_candidates(plain, 0.5)[0].describe()["noise_std"] == 0.5
    assert "noise_std" not in plain[0].describe()
