"""Factors per source task, against Hugging Face's own autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.inference.score import make_scorer
from bmtpt.methods.svgd_source import SvgdSource
from bmtpt.methods.task_factors import FactoredSource
from bmtpt.settings import LearnSettings
from bmtpt.stages.source import learn
from bmtpt.tasks.tokens import tokenise
from bmtpt.train.loop import Loop
from bmtpt.types import TokenBatch

SOURCES = ("sentiment", "pairs", "answers")
M, P, D = 2, 4, 24


@pytest.fixture(scope="module")
def make(tiny_backbone, tiny_tasks) -> Any:
    train = {name: tokenise(tiny_backbone, tiny_tasks[name].train, 64) for name in SOURCES}
    held_back = {name: tokenise(tiny_backbone, tiny_tasks[name].select[:2], 64) for name in SOURCES}
    words = {name: make_scorer(tiny_backbone, tiny_tasks[name].task).answers for name in SOURCES}

    def build(kind: type[SvgdSource], **changes: Any) -> Any:
        values = {"particles": M, "prompt_length": P, "batch_size": 2, "steps": 4, "evaluate_every": 4}
        settings = LearnSettings.model_validate(values | changes)
        return kind(HuggingFaceEngine(tiny_backbone), normal(M, P, D), train, held_back, settings, words)

    return build


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean_loss(model: Any, prompt: Tensor, batch: TokenBatch) -> Tensor:
    total = torch.zeros(())
    for ids, target in zip(batch.inputs, batch.targets, strict=True):
        embedded = torch.cat([prompt, model.shared(ids)])[None]
        total = total + model(inputs_embeds=embedded, labels=target[None]).loss * len(target)
    return total / len(batch)


def test_particles_and_factors_have_the_gradients_of_autograd(make, tiny_hf):
    method = make(FactoredSource)
    with torch.no_grad():
        method.row += 0.3 * normal(3, P, seed=1)
        method.col += 0.3 * normal(3, D, seed=2)
    batches = method.draw(1)
    losses = method.backward(batches, 1)
    theta, row, col = (x.detach().clone().requires_grad_(True) for x in (method.particles, method.row, method.col))
    wanted = {
        name: [mean_loss(tiny_hf, theta[m] * torch.outer(row[k], col[k]), batches[name]) for m in range(M)]
        for k, name in enumerate(SOURCES)
    }
    sum(sum(each) for each in wanted.values()).backward()
    _, score, _ = method.last
    assert torch.allclose(score, -theta.grad, rtol=1e-4, atol=1e-5 * float(theta.grad.abs().max()))
    for found, truth in ((method.row.grad, row.grad / M), (method.col.grad, col.grad / M)):
        assert torch.allclose(found, truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))
    for name in SOURCES:
        assert losses[name] == pytest.approx([loss.item() for loss in wanted[name]], rel=1e-5)


@pytest.mark.parametrize("likelihood", ["tokens", "labels"])
def test_factors_that_stay_at_one_change_nothing(make, likelihood):
    """The two sum the same gradients over examples in another order, so they agree to rounding and not in every bit."""
    plain = make(SvgdSource, likelihood=likelihood)
    factored = make(FactoredSource, likelihood=likelihood, factor_learning_rate=1e-30, weight_decay=0.0)
    for method in (plain, factored):
        Loop(method, method.settings).run()
    assert torch.equal(factored.row, torch.ones(3, P))
    assert torch.allclose(plain.particles, factored.particles, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain.particles, normal(M, P, D), atol=0.1)


def test_factors_of_different_tasks_part_and_have_a_learning_rate_of_their_own(make):
    method = make(FactoredSource, factor_learning_rate=0.07)
    particles, factors = method.groups()
    assert (particles.learning_rate, factors.learning_rate) == (0.3, 0.07)
    assert [tuple(tensor.shape) for tensor in factors.tensors] == [(3, P), (3, D)]
    Loop(method, method.settings).run()
    assert len({tuple(row) for row in method.row.tolist()}) == 3


def test_the_posterior_holds_the_shared_particles_and_its_diagnostics_are_theirs(tiny_backbone, tiny_tasks):
    values = {"particles": M, "prompt_length": P, "batch_size": 1, "steps": 3, "evaluate_every": 3}
    sources = [tiny_tasks[name] for name in SOURCES]
    found = {on: learn(tiny_backbone, sources, LearnSettings(**values, task_factors=on)) for on in (False, True)}
    assert found[True].particles.shape == (M, P, D)
    assert not torch.equal(found[True].particles, found[False].particles)
    card = found[True].card
    rows = tokenise(tiny_backbone, tiny_tasks["pairs"].select, 64).batch
    losses = HuggingFaceEngine(tiny_backbone).losses(found[True].particles, rows).mean(dim=1)
    assert card.diagnostics["particle_nll"]["pairs"] == pytest.approx(losses.tolist(), rel=1e-4)
