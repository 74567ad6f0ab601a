"""The target stage: its objective on a quadratic with a known optimum, and on the tiny T5 against Hugging Face."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.engine import Readings
from bmtpt.inference.score import PromptScore, Scorer, make_scorer
from bmtpt.methods.target import Candidate, TargetPrompts, TargetRows
from bmtpt.settings import AdaptSettings
from bmtpt.tasks import TaskSpec
from bmtpt.tasks.tokens import Tokenised, tokenise
from bmtpt.train.loop import Loop
from bmtpt.types import Example, TokenBatch

P, D = 2, 3
SPEC = TaskSpec(name="toy", file="toy.csv", text="toy {x}", labels={"0": "no", "1": "yes"})


class QuadraticEngine:
    """An `Engine` whose loss is ½‖θ_m − x_n‖²; the one token of an input is n, and x has its own row for each."""

    def __init__(self, points: Tensor) -> None:
        self.points = points

    def _losses(self, prompts: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        x = self.points[torch.cat(list(inputs))]
        return 0.5 * (prompts[:, None] - x[None]).pow(2).sum(dim=(2, 3))

    def losses(self, prompts: Tensor, batch: TokenBatch) -> Tensor:
        return self._losses(prompts, batch.inputs)

    def gradients(self, prompts: Tensor, batch: TokenBatch, weights: Tensor, choice: None) -> tuple[Tensor, Tensor]:
        x = self.points[torch.cat(list(batch.inputs))]
        gradient = ((prompts[:, None] - x[None]) * weights.to(prompts.dtype)[None, :, None, None]).sum(dim=1)
        return self._losses(prompts, batch.inputs), gradient

    def readings(self, prompts: Tensor, inputs: Sequence[Tensor], answers: Sequence[Tensor]) -> Readings:
        right = -self._losses(prompts, inputs)
        # The first answer is always the likelier.
        return Readings(torch.stack([right, right - 1], dim=2), prompts.new_zeros(len(prompts), len(inputs), 1))

    def generate(self, prompts: Tensor, inputs: Sequence[Tensor], max_new_tokens: int) -> list[list[str]]:
        raise NotImplementedError


def rows(first: int, count: int, scorer: Scorer | None = None) -> TargetRows:
    examples = tuple(Example(f"{n}", "", "", "no", label=0, references=("no",)) for n in range(count))
    inputs = [torch.tensor([n]) for n in range(first, first + count)]
    part = Tokenised(examples, TokenBatch(inputs, [torch.tensor([1])] * count), 0)
    words = (torch.tensor([0]), torch.tensor([1]))
    return TargetRows(part, part, scorer or Scorer(SPEC, "rank", words, {}, 4))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def settings(**changes: Any) -> AdaptSettings:
    values = {
        "steps": 6,
        "evaluate_every": 6,
        "decompose": False,
        "optimiser": "sgd",
        "weight_decay": 0.0,
        "readout": "none",
    }
    return AdaptSettings.model_validate(values | changes)


N = 12
POINTS = normal(40, P, D) + 2
PARTICLES = normal(3, P, D, seed=1)
MEAN = PARTICLES.mean(dim=0)


def trainer(candidates: list[Candidate], targets: dict[str, TargetRows] | None = None, **changes: Any) -> TargetPrompts:
    targets = targets or {"toy": rows(0, N)}
    return TargetPrompts(QuadraticEngine(POINTS), targets, candidates, PARTICLES, settings(**changes))


def mean_candidate(std: float | None) -> Candidate:
    return Candidate(MEAN, "mean", "none" if std is None else "mean", std)


def optimum(std: float, mean: Tensor = MEAN, x: Tensor = POINTS[:N]) -> Tensor:
    """Minimum of Σ_n ½‖θ − x_n‖² + ‖θ − θ̄‖²/(2σ²)."""
    return (x.sum(dim=0) + mean / std**2) / (len(x) + 1 / std**2)


@pytest.mark.parametrize("std", [0.2, 0.5])
@pytest.mark.parametrize("batch_size", [3, 4, 12, 50])
def test_batches_of_every_size_lead_to_the_same_optimum(std, batch_size):
    method = trainer([mean_candidate(std)], steps=400, evaluate_every=400, batch_size=batch_size, learning_rate=0.2)
    Loop(method, method.settings).run()
    wanted = optimum(std)
    assert (wanted - MEAN).norm() > 0.5
    tolerance = 1e-8 if batch_size >= N else 0.02
    assert (method.prompts(0)[0] - wanted).norm() < tolerance


@pytest.mark.parametrize("batch_size", [1, 3, 4, 6, 12])
def test_over_an_epoch_the_gradients_average_to_that_of_the_objective_over_n(batch_size):
    method = trainer([mean_candidate(0.5), Candidate(PARTICLES[0], "x", "mixture", 0.7)], batch_size=batch_size)
    epoch = N // batch_size
    total = torch.zeros(2, P, D, dtype=torch.float64)
    for step in range(epoch):
        method.full.grad = None
        method.backward(method.draw(step), step)
        total += method.full.grad
    theta = method.full.detach().clone().requires_grad_(True)
    nll = 0.5 * (theta[:, None] - POINTS[None, :N]).pow(2).sum()
    gaussian = (theta[0] - MEAN).pow(2).sum() / (2 * 0.5**2)
    mixture = -torch.logsumexp(-(theta[1] - PARTICLES).pow(2).sum(dim=(1, 2)) / (2 * 0.7**2), dim=0)
    ((nll + gaussian + mixture) / N).backward()
    assert torch.allclose(total / epoch, theta.grad, rtol=1e-10, atol=1e-12)


def test_a_tiny_std_keeps_the_prompt_at_the_prior_mean():
    start = mean_candidate(1e-3)
    method = trainer([start], steps=200, batch_size=N, learning_rate=1e-5)
    Loop(method, method.settings).run()
    moved = (method.prompts(0)[0] - start.start).norm()
    free = (POINTS[:N].mean(dim=0) - start.start).norm()
    assert 0 < moved < 2e-5 * free  # σ²N/(1 + σ²N) of the way


def test_a_prior_with_a_centre_of_its_own_leads_to_the_optimum_around_it():
    centre = PARTICLES[2] + 1
    candidates = [mean_candidate(0.5), Candidate(PARTICLES[0], "own", "mean", 0.5, centre=centre)]
    method = trainer(candidates, steps=400, batch_size=N, learning_rate=0.2)
    Loop(method, method.settings).run()
    for found, wanted in zip(method.prompts(0), (optimum(0.5), optimum(0.5, centre)), strict=True):
        assert (found - wanted).norm() < 1e-8
    assert (optimum(0.5) - optimum(0.5, centre)).norm() > 0.1


@pytest.mark.parametrize("optimiser", ["sgd", "adamw", "adafactor"])
@pytest.mark.parametrize("decompose", [False, True])
def test_an_infinite_std_is_no_prior_bit_for_bit(optimiser, decompose):
    method = trainer(
        [mean_candidate(None), mean_candidate(1e200), Candidate(MEAN, "mean", "mixture", 1e200)],
        optimiser=optimiser, decompose=decompose, batch_size=5,
    )  # fmt: skip
    Loop(method, method.settings).run()
    without = TargetPrompts(QuadraticEngine(POINTS), {"toy": rows(0, N)}, [mean_candidate(None)], None, method.settings)
    Loop(without, method.settings).run()
    for r in range(3):
        assert torch.equal(method.prompts(0)[r], without.prompts(0)[0])
    assert not torch.equal(without.prompts(0)[0], MEAN)


def test_a_prompt_is_pulled_to_the_nearest_particle_by_the_mixture_and_to_the_mean_by_the_gaussian():
    far = normal(3, P, D, seed=1) * 10
    candidates = [Candidate(far[1] + 0.1, "near 1", "mixture", 0.05), Candidate(far[1] + 0.1, "near 1", "mean", 0.05)]
    engine = QuadraticEngine(far[1:2].expand(N, -1, -1))
    method = TargetPrompts(engine, {"toy": rows(0, N)}, candidates, far, settings(steps=400, learning_rate=0.01))
    Loop(method, method.settings).run()
    assert (method.prompts(0)[0] - far[1]).norm() < 1e-3
    assert (method.prompts(0)[1] - optimum(0.05, far.mean(dim=0), far[1:2].expand(N, -1, -1))).norm() < 1e-3


@pytest.mark.parametrize("prior", ["mean", "mixture", "none"])
def test_gradients_of_every_factor_are_those_of_autograd(prior):
    targets = {"a": rows(0, 8), "b": rows(8, 4)}
    candidates = [Candidate(PARTICLES[r], f"{r}", prior, None if prior == "none" else 0.6) for r in range(3)]
    method = trainer(candidates, targets, decompose=True, batch_size=6)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for factor in (method.row, method.col):
            factor.copy_(torch.rand(factor.shape, generator=generator, dtype=torch.float64) + 0.5)
    batches = method.draw(1)
    method.backward(batches, 1)

    full, row, col = (x.detach().clone().requires_grad_(True) for x in (method.full, method.row, method.col))
    objective = torch.zeros((), dtype=torch.float64)
    drawn = sum(map(len, batches.values()))
    for k, name in enumerate(targets):
        for r in range(3):
            theta = full[r] * torch.outer(row[r, k], col[r, k])
            if prior == "mean":
                objective = objective + (theta - MEAN).pow(2).sum() / (2 * 0.6**2) / 12
            if prior == "mixture":
                exponents = torch.stack([-(theta - each).pow(2).sum() / (2 * 0.6**2) for each in PARTICLES])
                objective = objective - (exponents.exp().sum() / 3).log() / 12
            for ids in batches[name].inputs if name in batches else []:
                objective = objective + 0.5 * (theta - POINTS[ids.item()]).pow(2).sum() / drawn
    objective.backward()
    for found, wanted in ((method.full, full), (method.row, row), (method.col, col)):
        assert torch.allclose(found.grad, wanted.grad, rtol=1e-9, atol=1e-12)


def test_targets_share_a_and_have_factors_of_their_own():
    targets = {"a": rows(0, 8), "b": rows(8, 4)}
    method = trainer([mean_candidate(None)], targets, decompose=True, steps=30, batch_size=6, learning_rate=0.1)
    assert torch.equal(method.prompts(0), method.prompts(1))
    Loop(method, method.settings).run()
    assert not torch.equal(method.prompts(0), method.prompts(1))
    for k in (0, 1):
        wanted = method.full[0] * torch.outer(method.row[0, k], method.col[0, k])
        assert torch.allclose(method.prompts(k)[0], wanted)
    assert [len(group.tensors) for group in method.groups()] == [1, 2]
    assert method.groups()[1].learning_rate == method.settings.factor_learning_rate


def test_several_targets_are_read_in_epochs_in_proportion_to_their_sizes():
    targets = {"a": rows(0, 9), "b": rows(9, 3)}
    method = trainer([mean_candidate(None)], targets, batch_size=4)
    seen: dict[str, list[int]] = {"a": [], "b": []}
    for step in range(120):
        batches = method.draw(step)
        assert sum(map(len, batches.values())) == 4
        for name, batch in batches.items():
            seen[name] += [ids.item() for ids in batch.inputs]
    for name, size in (("a", 9), ("b", 3)):
        first = targets[name].train.batch.inputs[0].item()
        for epoch in range(len(seen[name]) // size):
            assert sorted(seen[name][epoch * size : (epoch + 1) * size]) == list(range(first, first + size))
    assert len(seen["a"]) / 480 == pytest.approx(0.75, abs=0.08)


def test_the_draw_of_a_step_does_not_depend_on_the_steps_before_it():
    targets = {"a": rows(0, 9), "b": rows(9, 3)}
    in_order, at_once = trainer([mean_candidate(None)], targets), trainer([mean_candidate(None)], targets)
    for step in range(20):
        last = in_order.draw(step)
    found = at_once.draw(19)
    assert {name: torch.cat(list(batch.inputs)).tolist() for name, batch in found.items()} == {
        name: torch.cat(list(batch.inputs)).tolist() for name, batch in last.items()
    }


def test_capped_targets_weigh_their_penalty_by_the_capped_rows():
    targets = {"a": rows(0, 20), "b": rows(20, 2)}
    method = trainer([mean_candidate(0.5)], targets, proportional_cap=4, batch_size=3)
    with torch.no_grad():
        method.full += 1
    method.engine.points = method.full.detach()[0].expand(40, -1, -1)  # no gradient from the data
    method.backward(method.draw(0), 0)
    assert torch.allclose(method.full.grad, torch.full((1, P, D), 2 / 0.5**2 / (4 + 2), dtype=torch.float64))


def test_the_cap_of_sampling_does_not_change_the_penalty_of_a_single_target():
    method = trainer([mean_candidate(0.5)], {"a": rows(0, 20)}, proportional_cap=4, batch_size=3)
    with torch.no_grad():
        method.full += 1
    method.engine.points = method.full.detach()[0].expand(40, -1, -1)  # no gradient from the data
    method.backward(method.draw(0), 0)
    assert torch.allclose(method.full.grad, torch.full((1, P, D), 1 / 0.5**2 / 20, dtype=torch.float64))


def test_with_a_frozen_only_the_factors_move_and_are_counted():
    start = normal(P, D)
    method = trainer([Candidate(start, "start")], decompose=True, freeze_full=True, batch_size=4, learning_rate=0.1)
    outcome = Loop(method, method.settings).run()
    full, row, col = outcome.tensors
    assert torch.equal(full[0], start)
    assert not torch.equal(row, torch.ones_like(row))
    assert not torch.equal(col, torch.ones_like(col))
    assert method.trained_parameters() == P + D


def test_freezing_all_that_is_trained_is_refused():
    with pytest.raises(ValueError, match="leaves nothing to train"):
        settings(decompose=False, freeze_full=True)


@pytest.mark.parametrize(
    ("targets", "decompose", "numbers"),
    [(1, True, 77_668), (1, False, 76_800), (3, True, 25_600 + 868), (3, False, 25_600), (7, True, 10_972 + 868)],
)
def test_trained_numbers_are_counted_per_target(targets, decompose, numbers):
    named = {f"t{k}": rows(k, 1) for k in range(targets)}
    start = Candidate(torch.zeros(100, 768), "zero")
    method = TargetPrompts(
        QuadraticEngine(torch.zeros(9, 100, 768)), named, [start], None, settings(decompose=decompose)
    )
    assert method.trained_parameters() == numbers
    trained = sum(tensor.numel() for group in method.groups() for tensor in group.tensors)
    assert math.ceil(trained / targets) == numbers


@pytest.mark.parametrize(("selection", "winner"), [("score", 1), ("loss", 0)])
def test_candidates_are_ranked_by_score_then_loss_or_by_loss_alone(selection, winner, monkeypatch):
    method = trainer([mean_candidate(None)] * 3, selection=selection)
    scores = [PromptScore(50, 0.1), PromptScore(60, 0.9), PromptScore(60, 1.0)]
    monkeypatch.setattr("bmtpt.methods.target.score_prompts", lambda *_: scores)
    ranking = method.validate([]).ranking
    assert max(range(3), key=lambda r: ranking[r]) == winner


def test_candidates_of_several_targets_are_ranked_by_their_mean(monkeypatch):
    found = iter([[PromptScore(80, 0.1), PromptScore(40, 0.1)], [PromptScore(10, 0.3), PromptScore(60, 0.5)]])
    monkeypatch.setattr("bmtpt.methods.target.score_prompts", lambda *_: next(found))
    method = trainer([mean_candidate(None)] * 2, {"a": rows(0, 4), "b": rows(4, 4)})
    assert method.validate([]).ranking == [(45, pytest.approx(-0.2)), (50, pytest.approx(-0.3))]


# Plain prompt tuning on the tiny T5, against a loop that uses nothing of ours.


@pytest.mark.parametrize("name", ["pairs", "answers"])
def test_plain_prompt_tuning_has_the_losses_of_a_loop_written_with_hugging_face(
    name, tiny_backbone, tiny_tasks, tiny_hf
):
    data = tiny_tasks[name]
    part = tokenise(tiny_backbone, data.train[:6], 64)
    select = tokenise(tiny_backbone, data.select[:2], 64)
    target = TargetRows(part, select, make_scorer(tiny_backbone, data.task))
    start = normal(5, 24, seed=3, dtype=torch.float32)
    chosen = settings(optimiser="adamw", weight_decay=0.01, learning_rate=0.2, batch_size=6, steps=5)
    method = TargetPrompts(HuggingFaceEngine(tiny_backbone), {name: target}, [Candidate(start, "x")], None, chosen)
    outcome = Loop(method, chosen).run()

    tokenizer = tiny_backbone.tokenizer
    texts = tokenizer([e.text for e in data.train[:6]], return_tensors="pt", padding=True)
    labels = tokenizer([e.target for e in data.train[:6]], return_tensors="pt", padding=True)
    ignored = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
    prompt = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.AdamW([prompt], lr=0.2, weight_decay=0.01)
    losses = []
    for step in range(5):
        optimiser.param_groups[0]["lr"] = 0.2 * (5 - step) / 5
        embedded = torch.cat([prompt.expand(6, -1, -1), tiny_hf.shared(texts.input_ids)], dim=1)
        mask = torch.cat([torch.ones(6, 5, dtype=torch.int64), texts.attention_mask], dim=1)
        logits = tiny_hf(inputs_embeds=embedded, attention_mask=mask, labels=ignored).logits
        summed = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ignored, reduction="none").sum(dim=1)
        optimiser.zero_grad()
        summed.mean().backward()
        optimiser.step()
        losses.append(summed.mean().item())
    assert outcome.state.losses == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0]
    assert torch.allclose(method.prompts(0)[0], prompt, rtol=1e-3, atol=1e-3)
