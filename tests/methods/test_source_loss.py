"""The losses of a source task against autograd through Hugging Face's model, and against each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.inference.score import make_scorer
from bmtpt.methods import source_loss
from bmtpt.methods.svgd_source import SvgdSource
from bmtpt.methods.task_factors import FactoredSource
from bmtpt.posterior.readout import Readout, Widths, fit, label_free_offset
from bmtpt.settings import LearnSettings
from bmtpt.tasks.tokens import tokenise
from bmtpt.train.loop import Loop
from bmtpt.types import TokenBatch

SOURCES = ("sentiment", "pairs")
M, P, D = 2, 4, 24


@pytest.fixture(scope="module")
def words(tiny_backbone, tiny_tasks) -> dict[str, Any]:
    return {name: make_scorer(tiny_backbone, tiny_tasks[name].task).answers for name in SOURCES}


@pytest.fixture(scope="module")
def make(tiny_backbone, tiny_tasks, words) -> Any:
    train = {name: tokenise(tiny_backbone, tiny_tasks[name].train, 64) for name in SOURCES}

    def build(kind: type[SvgdSource] = SvgdSource, **changes: Any) -> Any:
        values = {"particles": M, "prompt_length": P, "batch_size": 8, "steps": 4, "evaluate_every": 4}
        settings = LearnSettings.model_validate(values | {"source_objective": "readout"} | changes)
        return kind(HuggingFaceEngine(tiny_backbone), prompts(), train, train, settings, words)

    return build


def prompts() -> Tensor:
    return torch.randn(M, P, D, generator=torch.Generator().manual_seed(0))


def part(batch: TokenBatch, rows: slice) -> TokenBatch:
    return TokenBatch(batch.inputs[rows], batch.targets[rows])


def reading(model: Any, prompt: Tensor, ids: Tensor, words: Any) -> tuple[Tensor, Tensor]:
    """s and h of one text by Hugging Face's model."""
    row = torch.cat([prompt, model.shared(ids)])[None]
    scores = [-model(inputs_embeds=row, labels=word[None]).loss * len(word) for word in words]
    return torch.stack(scores), model.encoder(inputs_embeds=row).last_hidden_state[0, len(prompt) :].mean(dim=0)


def readings(model: Any, prompt: Tensor, batch: TokenBatch, words: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = [reading(model, prompt, ids, words) for ids in batch.inputs]
    right = [[torch.equal(word, target) for word in words].index(True) for target in batch.targets]
    return torch.stack([s for s, _ in found]), torch.stack([h for _, h in found]), torch.tensor(right)


def after_readout(model: Any, prompt: Tensor, support: TokenBatch, query: TokenBatch, words: Any) -> Tensor:
    """−log softmax_c(z)[y] of each query, by the readout of the support, which is held fixed."""
    s, h, y = (each.detach() for each in readings(model, prompt, support, words))
    readout = fit(s, y, Widths(0.8, 1.3), h, label_free_offset(s))
    s, h, y = readings(model, prompt, query, words)
    return -readout.logits(s, h).log_softmax(dim=1)[range(len(y)), y]


@pytest.mark.parametrize("kind", [SvgdSource, FactoredSource])
def test_the_score_is_that_of_the_query_with_each_particles_readout_of_the_support_held_fixed(
    make, tiny_hf, words, kind
):
    method = make(kind, offset_std=0.8, weight_std=1.3)
    batches = method.draw(1)
    losses = method.backward(batches, 1)
    theta, wanted = prompts().requires_grad_(True), {}
    for name, batch in batches.items():
        halves = part(batch, slice(4)), part(batch, slice(4, None))
        wanted[name] = [after_readout(tiny_hf, theta[m], *halves, words[name]).mean() for m in range(M)]
    sum(map(sum, wanted.values())).backward()
    _, score, _ = method.last
    assert torch.allclose(score, -theta.grad, rtol=1e-3, atol=1e-4 * float(theta.grad.abs().max()))
    for name in SOURCES:
        assert losses[name] == pytest.approx([loss.item() for loss in wanted[name]], rel=1e-4)


def test_with_nothing_to_fit_it_is_the_likelihood_of_the_querys_labels(make, monkeypatch):
    monkeypatch.setattr(source_loss, "label_free_offset", lambda scores: torch.zeros(scores.shape[1]))
    readout, labels = make(offset_std=0.0, weight_std=0.0), make(source_objective="words", likelihood="labels")
    batches = readout.draw(0)
    losses = readout.backward(batches, 0)
    wanted = labels.backward({name: part(batch, slice(4, None)) for name, batch in batches.items()}, 0)
    assert {name: pytest.approx(each, rel=1e-6) for name, each in losses.items()} == wanted
    torch.testing.assert_close(readout.particles.grad, labels.particles.grad, rtol=1e-5, atol=1e-7)
    kept = {name: pytest.approx(each, rel=1e-6) for name, each in readout.held_back_nll().items()}
    assert kept == labels.held_back_nll()


def test_every_held_back_example_is_read_by_the_other_half_of_its_draw(make, tiny_hf, words):
    method = make(offset_std=0.8, weight_std=1.3)
    rows = part(method.held_back["pairs"].batch, slice(9))
    found = method.losses["pairs"].held_back(prompts(), rows)
    # Draws of 8: nine examples are one draw.
    for fitted, judged in ((slice(5), slice(5, 9)), (slice(5, 9), slice(5))):
        wanted = after_readout(tiny_hf, prompts()[1], part(rows, fitted), part(rows, judged), words["pairs"])
        torch.testing.assert_close(found[1, judged].double(), wanted.detach().double(), rtol=1e-3, atol=1e-4)


def test_draws_of_held_back_examples_are_as_large_as_those_of_a_step(make, monkeypatch):
    sizes = []

    def counted(scores: Tensor, *rest: Any) -> Readout:
        sizes.append(len(scores))
        return fit(scores, *rest)

    monkeypatch.setattr(source_loss, "fit", counted)
    method = make(batch_size=6)
    method.losses["pairs"].held_back(prompts()[:1], method.held_back["pairs"].batch)
    assert sizes == [3] * 8  # 24 examples, four draws, two halves each


def test_learning_for_readouts_lowers_their_held_back_loss(make):
    method = make(steps=30, learning_rate=0.3, evaluate_every=30, batch_size=16)
    before = method.held_back_nll()
    Loop(method, method.settings).run()
    after = method.held_back_nll()
    assert sum(sum(after[name][1:]) for name in SOURCES) < sum(sum(before[name][1:]) for name in SOURCES)
