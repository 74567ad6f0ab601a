"""MPT's two stages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bmtpt.backbone.encoder_decoder.distillation import distillation_gradients
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.inference.score import make_scorer
from bmtpt.methods.mpt import MptOptions, MptSource, mpt_candidate, source_parameters, target_start
from bmtpt.methods.registry import Learned
from bmtpt.methods.target import TargetPrompts, TargetRows
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.tasks.tokens import epoch_rows, tokenise
from bmtpt.train.loop import Loop

SOURCES = ("sentiment", "pairs", "answers")
K, P, D = 3, 4, 24


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TEACHERS = {name: normal(P, D, seed=10 + k) for k, name in enumerate(SOURCES)}


@pytest.fixture(scope="module")
def train(tiny_backbone, tiny_tasks) -> dict[str, Any]:
    return {name: tokenise(tiny_backbone, tiny_tasks[name].train, 64) for name in SOURCES}


@pytest.fixture(scope="module")
def make(tiny_backbone, train) -> Any:
    def build(weight: float, **changes: Any) -> MptSource:
        values = {"particles": 1, "batch_size": 2, "steps": 5, "evaluate_every": 5, "factor_learning_rate": 0.05}
        settings = LearnSettings.model_validate(values | changes)
        engine, distillation = HuggingFaceEngine(tiny_backbone), MptOptions(distillation_weight=weight)
        held_back = {name: rows for name, rows in train.items() if name == "pairs"}
        return MptSource(engine, normal(P, D), TEACHERS, train, held_back, settings, distillation)

    return build


def test_at_zero_distillation_weight_the_student_is_plain_multi_task_training(make, tiny_backbone, tiny_hf):
    method = make(0.0)
    outcome = Loop(method, method.settings).run()

    tokenizer = tiny_backbone.tokenizer
    shared = torch.nn.Parameter(normal(P, D)[None])
    row, col = torch.nn.Parameter(torch.ones(K, P)), torch.nn.Parameter(torch.ones(K, D))
    groups = [{"params": [shared], "lr": 0.3}, {"params": [row, col], "lr": 0.05}]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-5)
    losses = []
    for step in range(5):
        total = torch.zeros(())
        for k, rows in enumerate(method.train.values()):
            drawn = [rows.examples[i] for i in epoch_rows(24, 2, step, seed=0, task=k)]
            texts = tokenizer([e.text for e in drawn], return_tensors="pt", padding=True)
            labels = tokenizer([e.target for e in drawn], return_tensors="pt", padding=True)
            prompt = shared[0] * torch.outer(row[k], col[k])
            embedded = torch.cat([prompt.expand(2, -1, -1), tiny_hf.shared(texts.input_ids)], dim=1)
            mask = torch.cat([torch.ones(2, P, dtype=torch.int64), texts.attention_mask], dim=1)
            ignored = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
            total = total + tiny_hf(inputs_embeds=embedded, attention_mask=mask, labels=ignored).loss
        for group, rate in zip(optimiser.param_groups, (0.3, 0.05), strict=True):
            group["lr"] = rate * (5 - step) / 5
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        losses.append(total.item() / K)
    assert outcome.state.losses == pytest.approx(losses, rel=1e-4)
    for found, wanted in zip(outcome.tensors, (shared, row, col), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-2, atol=2e-3)


def test_the_gradient_with_distillation_is_that_of_the_task_and_the_teachers(make):
    method = make(0.9)
    with torch.no_grad():
        method.row += 0.3 * normal(K, P, seed=1)
        method.col += 0.3 * normal(K, D, seed=2)
    batches = method.draw(2)
    losses = method.backward(batches, 2)
    shared, row, col = (x.detach().clone().requires_grad_(True) for x in (method.particles, method.row, method.col))
    for k, (name, batch) in enumerate(batches.items()):
        student = shared[0] * torch.outer(row[k], col[k])
        weights = torch.full((2,), 1 / sum(batch.target_tokens()))
        terms, gradient = distillation_gradients(
            method.engine, student.detach().expand(2, -1, -1), TEACHERS[name].expand(2, -1, -1), batch, weights,
            strength=0.9, temperature=1.0,
        )  # fmt: skip
        (student * gradient.sum(dim=0)).sum().backward()
        assert losses[name] == pytest.approx([float((terms.nll * weights).sum())], rel=1e-5)
    for found, wanted in ((method.particles, shared), (method.row, row), (method.col, col)):
        assert torch.allclose(found.grad, wanted.grad, rtol=1e-3, atol=1e-5 * float(wanted.grad.abs().max()))


def test_distillation_draws_the_students_to_their_teachers(make):
    """The same steps with λ leave the outputs nearer to the teachers' than without."""
    divergence = {}
    for weight in (0.0, 20.0):
        method = make(weight, steps=25, evaluate_every=25, learning_rate=0.1)
        Loop(method, method.settings).run()
        method.distillation = MptOptions()
        method.backward(method.draw(0), 0)
        divergence[weight] = float(method.terms.divergence.mean())
    assert divergence[20.0] < 0.8 * divergence[0.0]


def test_a_target_starts_at_the_shared_prompt_times_the_mean_factors(tiny_backbone, tiny_tasks):
    trained = [normal(1, P, D), normal(K, P, seed=1), normal(K, D, seed=2)]
    start = target_start(trained)
    full, row, col = trained[0][0], trained[1].mean(dim=0), trained[2].mean(dim=0)
    assert all(torch.equal(start[name], each) for name, each in {"full": full, "row": row, "col": col}.items())
    assert source_parameters(start, K) == sum(each.numel() for each in trained)
    targets = {
        name: TargetRows(part, part, make_scorer(tiny_backbone, tiny_tasks[name].task))
        for name in ("pairs", "sentiment")
        for part in [tokenise(tiny_backbone, tiny_tasks[name].train[:4], 64)]
    }
    candidates = mpt_candidate(SimpleNamespace(learned=Learned(own=start)))
    for decompose in (True, False):
        settings = AdaptSettings(decompose=decompose, steps=2, evaluate_every=2, batch_size=4)
        method = TargetPrompts(HuggingFaceEngine(tiny_backbone), targets, candidates, None, settings)
        for k in (0, 1):
            assert torch.allclose(method.prompts(k)[0], full * torch.outer(row, col))
        assert len(method.groups()) == 1 + decompose
        outcome = Loop(method, settings).run()
        assert not torch.equal(method.prompts(0)[0], full * torch.outer(row, col))
        assert torch.equal(method.prompts(0), method.prompts(1)) is not decompose  # multi-target: A is shared
        assert method.composed(outcome.tensors, 0).shape == (1, P, D)
