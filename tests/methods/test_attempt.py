"""ATTEMPT: its attention against torch's own layers, its training against Hugging Face's autograd."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bmtpt.artifacts.saved import Prompt, PromptMixture, read_artifact
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.errors import ArtifactError
from bmtpt.inference.score import evaluate_prompts, make_scorer, score_prompts
from bmtpt.methods import attempt
from bmtpt.methods.attempt import (
    ATTEMPT,
    Attempt,
    AttemptOptions,
    attend,
    initial_attention,
    instance_prompts,
    mix,
    text_summary,
)
from bmtpt.methods.registry import Learned
from bmtpt.methods.target import Candidate, TargetPrompts, TargetRows
from bmtpt.settings import AdaptSettings
from bmtpt.stages.evaluate import evaluate
from bmtpt.stages.target import fit_method
from bmtpt.tasks.tokens import tokenise
from bmtpt.train.loop import Loop

R, K, P, D, WIDTH = 2, 3, 4, 24, 7


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SOURCES = 3 * normal(K, P, D, seed=1)
STARTS = [Candidate(normal(P, D, seed=seed), f"start {seed}") for seed in range(R)]


def module(scale: float = 1.0) -> attempt.Attention:
    """An attention that is far from its start, so that a forgotten part would show."""
    return attempt.Attention(
        scale * normal(R, D, WIDTH, seed=2), normal(R, WIDTH, D, seed=3), 30 * normal(R, D, seed=4), normal(R, D)
    )


@pytest.fixture(scope="module")
def rows(tiny_backbone, tiny_tasks) -> dict[str, TargetRows]:
    found = {}
    for name in ("pairs", "answers"):
        data = tiny_tasks[name]
        train, select = (tokenise(tiny_backbone, part, 64) for part in (data.train[:6], data.select[:5]))
        found[name] = TargetRows(train, select, make_scorer(tiny_backbone, data.task))
    return found


@pytest.fixture(scope="module")
def make(tiny_backbone, rows) -> Any:
    def build(*names: str, rate: float = 0.02, **changes: Any) -> Attempt:
        values = {"steps": 4, "evaluate_every": 4, "batch_size": 3, "learning_rate": 0.1, "readout": "none"}
        return Attempt(
            HuggingFaceEngine(tiny_backbone),
            {name: rows[name] for name in names or ("pairs",)},
            STARTS,
            AdaptSettings.model_validate(values | changes),
            embed=tiny_backbone.embed,
            sources=SOURCES,
            attention=AttemptOptions(attention_width=WIDTH, attention_learning_rate=rate),
        )

    return build


def by_hand(target: Tensor, sources: Tensor, attention: list[Tensor], embedded: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's formula for one text [L, D] and one candidate, with torch's own layers."""
    down, up, gain, bias = attention
    norm = nn.LayerNorm(D)
    norm.weight.data, norm.bias.data = gain.clone(), bias.clone()
    first, second = nn.Linear(D, WIDTH, bias=False), nn.Linear(WIDTH, D, bias=False)
    first.weight.data, second.weight.data = down.T.clone(), up.T.clone()
    h = norm(second(nn.SiLU()(first(embedded.max(dim=0).values))))
    prompts = [*sources, target]
    logits = torch.stack([each.max(dim=0).values @ h / (math.e * D) for each in prompts])
    a = logits.exp() / logits.exp().sum()
    return a.detach(), target + sum(weight * each for weight, each in zip(a, prompts, strict=True)).detach()


def test_attention_sums_to_one_and_both_it_and_the_prompt_are_the_papers(tiny_backbone, rows):
    inputs = rows["pairs"].train.batch.inputs
    target, given = normal(R, P, D, seed=5), module()
    text = text_summary(tiny_backbone.embed, inputs)
    found = instance_prompts(target, SOURCES, given, text)
    for r in range(R):
        keys = torch.stack([*SOURCES.amax(dim=1), target[r].amax(dim=0)])[None]
        a = attend(attempt.Attention(*(tensor[r : r + 1] for tensor in given)), text, keys)
        assert torch.allclose(a.sum(dim=2), torch.ones(1, len(inputs)))
        for n, ids in enumerate(inputs):
            embedded = tiny_backbone.embed(ids)
            weights, prompt = by_hand(target[r], SOURCES, [tensor[r] for tensor in given], embedded)
            assert torch.allclose(a[0, n], weights, atol=1e-5)
            assert torch.allclose(found[r, n], prompt, atol=1e-4)
    assert (found[:, 0] - found[:, 1]).abs().max() > 1e-3  # another text, another prompt


def test_no_attention_leaves_the_target_prompt_alone():
    target = normal(R, P, D)
    assert torch.equal(mix(target, SOURCES, torch.zeros(R, 5, K + 1)), target[:, None].expand(-1, 5, -1, -1))


def test_at_zero_attention_weight_it_trains_as_plain_prompt_tuning(make, rows, monkeypatch):
    """Gradients are summed over examples in another order, hence the tolerance."""
    monkeypatch.setattr(attempt, "attend", lambda module, text, keys: 0 * attend(module, text, keys))
    changes = {"decompose": False, "optimiser": "sgd", "weight_decay": 0.0}
    method = make(**changes)
    outcome = Loop(method, method.settings).run()
    plain = TargetPrompts(method.engine, {"pairs": rows["pairs"]}, STARTS, None, method.settings)
    wanted = Loop(plain, plain.settings).run()
    assert outcome.state.losses == pytest.approx(wanted.state.losses, rel=1e-5)
    assert torch.allclose(outcome.tensors[0][:, 0], wanted.tensors[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(wanted.tensors[0][0], STARTS[0].start, atol=1e-3)


def test_target_prompt_and_attention_have_the_gradients_of_autograd(make, tiny_hf):
    method = make("pairs", "answers")
    method.module = attempt.Attention(*(tensor.requires_grad_(True) for tensor in module()))
    with torch.no_grad():
        method.target += normal(R, 2, P, D, seed=6)
    batches = next(drawn for drawn in map(method.draw, range(20)) if len(drawn) == 2)
    losses = method.backward(batches, 1)
    leaves = [tensor.detach().clone().requires_grad_(True) for tensor in (method.target, *method.module)]
    target, *attention = leaves
    total = torch.zeros(())
    for k, name in enumerate(("pairs", "answers")):
        for r in range(R):
            values = []
            for ids, label in zip(batches[name].inputs, batches[name].targets, strict=True):
                text = tiny_hf.shared(ids)
                x = nn.functional.silu(text.amax(dim=0) @ attention[0][r]) @ attention[1][r]
                h = nn.functional.layer_norm(x, (D,), attention[2][r], attention[3][r])
                prompts = torch.stack([*SOURCES, target[r, k]])
                a = (prompts.amax(dim=1) @ h / (math.e * D)).softmax(dim=0)
                prompt = target[r, k] + torch.einsum("j,jpd->pd", a, prompts)
                embedded = torch.cat([prompt, text])[None]
                values.append(tiny_hf(inputs_embeds=embedded, labels=label[None]).loss * len(label))
            total = total + sum(values) / 3
            assert losses[name][r] == pytest.approx(sum(values).item() / len(values), rel=1e-4)
    total.backward()
    for found, wanted in zip((method.target, *method.module), leaves, strict=True):
        assert torch.allclose(found.grad, wanted.grad, rtol=1e-3, atol=1e-4 * float(wanted.grad.abs().max()))


def test_the_second_optimiser_group_is_the_attention_which_has_a_learning_rate_of_its_own_and_moves(make):
    method = make(rate=0.05)
    prompts, attention = method.groups()
    assert (prompts.learning_rate, attention.learning_rate) == (0.1, 0.05)
    assert [tuple(tensor.shape) for tensor in attention.tensors] == [(R, D, WIDTH), (R, WIDTH, D), (R, D), (R, D)]
    before = [tensor.detach().clone() for group in (prompts, attention) for tensor in group.tensors]
    sources = method.sources.clone()
    Loop(method, method.settings).run()
    after = [tensor for group in method.groups() for tensor in group.tensors]
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert torch.equal(method.sources, sources)


def test_targets_have_prompts_of_their_own_and_share_the_attention(make):
    method = make("pairs", "answers", steps=6, evaluate_every=6)
    Loop(method, method.settings).run()
    assert not torch.equal(method.target[:, 0], method.target[:, 1])
    first, second = (method.mixture([method.target, *method.module], k, winner=1) for k in (0, 1))
    assert torch.equal(first["target"][0], method.target[1, 0])
    assert torch.equal(second["target"][0], method.target[1, 1])
    assert all(torch.equal(first[name], second[name]) for name in ("sources", "down", "up", "gain", "bias"))


def test_trained_numbers_are_those_that_the_paper_prints_for_t5_base(rows):
    """232K for one target; several share the attention."""
    candidate = Candidate(torch.zeros(100, 768), "zero")
    for count, numbers in ((1, 231_936), (2, 154_368)):
        targets = {f"{k}": rows["pairs"] for k in range(count)}
        sources, no_rows = torch.zeros(6, 100, 768), lambda ids: torch.zeros(len(ids), 768)
        settings, attention = AdaptSettings(readout="none"), AttemptOptions()
        method = Attempt(
            None,
            targets,
            [candidate],
            settings,
            embed=no_rows,
            sources=sources,
            attention=attention,
        )
        assert method.trained_parameters() == numbers
        assert sum(t.numel() for group in method.groups() for t in group.tensors) == count * numbers


def test_the_attention_of_every_candidate_starts_from_one_draw_of_the_seed():
    like = torch.zeros(R, P, D)
    first, again, other = (initial_attention(like, WIDTH, seed) for seed in (0, 0, 1))
    assert torch.equal(first.down[0], first.down[1])
    assert torch.equal(first.up, again.up)
    assert not torch.equal(first.down, other.down)
    assert not torch.equal(first.down[0], first.up[0].T)


def test_a_text_is_scored_alike_alone_and_among_others(make, rows, monkeypatch):
    """Whatever the blocks, and whatever the lengths of its neighbours: the attention never sees padding."""
    method = make("pairs")
    method.module = attempt.Attention(*module())
    engine, part, scorer = method.engine, rows["pairs"].select, rows["pairs"].scorer
    with torch.no_grad():
        whole = score_prompts(engine, method.prompts(0), part, scorer)
        monkeypatch.setattr("bmtpt.inference.score.BLOCK", 2)
        blocks = score_prompts(engine, method.prompts(0), part, scorer)
        own = method.prompts(0)(part.batch.inputs)
        alone = method.prompts(0)(part.batch.inputs[3:4])
    assert torch.allclose(own[:, 3:4], alone, atol=1e-6)
    assert [score.nll for score in blocks] == pytest.approx([score.nll for score in whole], rel=1e-5)
    # The right answers' losses, from the prompts made one text at a time.
    losses = engine.losses(own, part.batch).mean(dim=1)
    assert [score.nll for score in whole] == pytest.approx(losses.tolist(), rel=1e-4)


@pytest.mark.parametrize("name", ["pairs", "answers"])
def test_a_saved_mixture_scores_as_the_trained_one_and_its_card_says_what_was_trained(
    name, tiny_backbone, tiny_tasks, tmp_path: Path
):
    settings = AdaptSettings(steps=3, evaluate_every=3, batch_size=3, shots=4, readout="none")
    prompts = {f"source{k}": SOURCES[k] for k in range(K)}
    learned = Learned(tuple(prompts), prompts=prompts)
    options = AttemptOptions(attention_width=WIDTH)
    trained = fit_method(ATTEMPT, tiny_backbone, [tiny_tasks[name]], settings, options, learned=learned, budget=2)[name]
    assert trained.card.settings["options"] == options.model_dump()
    assert trained.card.method == "attempt"
    assert trained.card.sources == ("source0", "source1", "source2")
    assert trained.card.trained_parameters == P * D + 2 * D * WIDTH + 2 * D
    assert trained.card.seconds > 0
    assert [each["start"] for each in trained.card.selection["candidates"]] == [
        "vocabulary draw 0",
        "vocabulary draw 1",
    ]
    saved = trained.save(tmp_path / "mixture")
    loaded = PromptMixture.load(tmp_path / "mixture")
    assert loaded.card == saved.card
    assert all(torch.equal(loaded.tensors[key], value) for key, value in trained.tensors.items())
    found = evaluate(tiny_backbone, loaded, tiny_tasks[name].test)
    data = tokenise(tiny_backbone, tiny_tasks[name].test, 64)
    own = attempt.mixture_prompts(tiny_backbone.embed, trained.tensors)(data.batch.inputs)
    scorer = make_scorer(tiny_backbone, tiny_tasks[name].task)
    wanted = evaluate_prompts(HuggingFaceEngine(tiny_backbone), lambda inputs: own, data, scorer)
    assert found.predictions == wanted.predictions
    assert found.metrics == pytest.approx(wanted.metrics)
    with pytest.raises(ArtifactError, match="holds a mixture where a prompt is needed"):
        Prompt.load(tmp_path / "mixture")
    with pytest.raises(ArtifactError, match="mixture"):
        read_artifact(tmp_path / "mixture")
