"""The source stage against Hugging Face's own autograd and against a plain prompt tuning loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.inference.score import make_scorer
from bmtpt.methods.svgd_source import SvgdSource
from bmtpt.posterior.positions import read_positions
from bmtpt.posterior.svgd import svgd_direction
from bmtpt.settings import LearnSettings
from bmtpt.tasks.tokens import epoch_rows, tokenise
from bmtpt.train.loop import Loop
from bmtpt.types import TokenBatch

SOURCES = ("sentiment", "pairs", "answers")
M, P = 3, 4


@pytest.fixture(scope="module")
def train(tiny_backbone, tiny_tasks) -> dict[str, Any]:
    return {name: tokenise(tiny_backbone, tiny_tasks[name].train, 64) for name in SOURCES}


@pytest.fixture(scope="module")
def held_back(tiny_backbone, tiny_tasks) -> dict[str, Any]:
    return {name: tokenise(tiny_backbone, tiny_tasks[name].select[:4], 64) for name in SOURCES}


@pytest.fixture(scope="module")
def words(tiny_backbone, tiny_tasks) -> dict[str, Any]:
    return {name: make_scorer(tiny_backbone, tiny_tasks[name].task).answers for name in SOURCES}


@pytest.fixture(scope="module")
def make(tiny_backbone, train, held_back, words) -> Any:
    def build(particles: Tensor, **changes: Any) -> SvgdSource:
        values = {"particles": len(particles), "prompt_length": P, "batch_size": 2, "steps": 6, "evaluate_every": 3}
        settings = LearnSettings.model_validate(values | changes)
        return SvgdSource(HuggingFaceEngine(tiny_backbone), particles, train, held_back, settings, words)

    return build


def particles(count: int = M, seed: int = 0) -> Tensor:
    return torch.randn(count, P, 24, generator=torch.Generator().manual_seed(seed))


def mean_loss(model: Any, prompt: Tensor, batch: TokenBatch, unit: str = "example") -> Tensor:
    """Mean cross-entropy of a batch per example or target token, one example at a time, by Hugging Face's model."""
    total = torch.zeros(())
    for ids, target in zip(batch.inputs, batch.targets, strict=True):
        embedded = torch.cat([prompt, model.shared(ids)])[None]
        total = total + model(inputs_embeds=embedded, labels=target[None]).loss * len(target)
    return total / (len(batch) if unit == "example" else sum(batch.target_tokens()))


def decision_loss(model: Any, prompt: Tensor, batch: TokenBatch, words: Any) -> Tensor:
    """Mean of −log softmax_c(s)[y], s_c by Hugging Face's model; without words that of the tokens."""
    if not words:
        return mean_loss(model, prompt, batch)
    scores = [[-mean_loss(model, prompt, TokenBatch([ids], [word])) for word in words] for ids in batch.inputs]
    right = [[torch.equal(word, target) for word in words].index(True) for target in batch.targets]
    log_shares = [torch.stack(each).log_softmax(dim=0)[y] for each, y in zip(scores, right, strict=True)]
    return -torch.stack(log_shares).mean()


def test_every_source_gives_the_same_number_of_examples_and_the_draw_depends_on_the_step_alone(make, train):
    method = make(particles())
    drawn = [method.draw(step) for step in (0, 5, 0)]
    assert [list(batches) for batches in drawn] == [list(SOURCES)] * 3
    assert all(len(batch) == 2 for batches in drawn for batch in batches.values())
    for name in SOURCES:
        first, other, again = ([ids.tolist() for ids in batches[name].inputs] for batches in drawn)
        assert first == again
        assert first != other
    wanted = epoch_rows(len(train["pairs"]), 2, 5, seed=0, task=1)
    assert [ids.tolist() for ids in drawn[1]["pairs"].inputs] == [
        train["pairs"].batch.inputs[i].tolist() for i in wanted
    ]


@pytest.mark.parametrize(
    ("scale", "factors"), [("mean", [1.0, 1.0, 1.0]), ("data", [24.0, 24.0, 24.0]), (2.5, [2.5, 2.5, 2.5])]
)
@pytest.mark.parametrize("unit", ["example", "token"])
def test_the_score_is_minus_the_gradient_of_the_sum_of_the_tasks_means(make, tiny_hf, scale, factors, unit):
    method = make(particles(), likelihood_scale=scale, likelihood_unit=unit)
    batches = method.draw(3)
    losses = method.backward(batches, 3)
    theta = particles().requires_grad_(True)
    wanted = {name: [mean_loss(tiny_hf, theta[m], batches[name], unit) for m in range(M)] for name in SOURCES}
    sum(factor * sum(wanted[name]) for factor, name in zip(factors, SOURCES, strict=True)).backward()
    _, score, _ = method.last
    assert torch.allclose(score, -theta.grad, rtol=1e-4, atol=1e-5 * float(theta.grad.abs().max()))
    for name in SOURCES:
        assert losses[name] == pytest.approx([loss.item() for loss in wanted[name]], rel=1e-5)


def test_the_likelihood_of_labels_is_the_share_of_the_right_word_and_free_answers_keep_their_tokens(
    make, tiny_hf, words, held_back
):
    method = make(particles(), likelihood="labels")
    batches = method.draw(3)
    losses = method.backward(batches, 3)
    theta = particles().requires_grad_(True)
    wanted = {
        name: [decision_loss(tiny_hf, theta[m], batches[name], words[name]) for m in range(M)] for name in SOURCES
    }
    sum(map(sum, wanted.values())).backward()
    _, score, _ = method.last
    assert torch.allclose(score, -theta.grad, rtol=1e-4, atol=1e-5 * float(theta.grad.abs().max()))
    nll = method.held_back_nll()
    for name in SOURCES:
        assert losses[name] == pytest.approx([loss.item() for loss in wanted[name]], rel=1e-5)
        kept = [decision_loss(tiny_hf, theta[m], held_back[name].batch, words[name]).item() for m in range(M)]
        assert nll[name][1:] == pytest.approx(kept, rel=1e-5)


def test_small_draws_have_the_expected_gradient_of_large_ones_however_long_the_answers_are(make, train):
    single = make(particles(1), batch_size=1)
    inputs, targets = train["sentiment"].batch.inputs[:4], train["sentiment"].batch.targets[:4]
    longer = [target.repeat(1 + n) for n, target in enumerate(targets)]
    whole = single._gradients({"sentiment": TokenBatch(inputs, longer)}, {})[1]
    alone = [TokenBatch(inputs[n : n + 1], longer[n : n + 1]) for n in range(4)]
    each = torch.stack([single._gradients({"sentiment": one}, {})[1] for one in alone])
    torch.testing.assert_close(each.mean(dim=0), whole, rtol=1e-4, atol=1e-6)


def test_a_tasks_weight_does_not_depend_on_the_length_of_its_answers(make):
    method = make(particles(1))
    short, long = (TokenBatch([torch.ones(3)] * 2, [torch.ones(length)] * 2) for length in (2, 8))
    assert method._weights({"sentiment": short, "pairs": long}).tolist() == [0.5] * 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel": "imq", "scope": "row", "repulsion": 0.5},
        {"kernel": "linear", "bandwidth": 3.0, "annealing": "linear"},
    ],
)
def test_the_gradient_handed_to_the_optimiser_is_minus_phi(make, options):
    method = make(particles(), **options)
    method.backward(method.draw(1), 1)
    given = {key: value for key, value in options.items() if key != "annealing"}
    if "annealing" in options:
        given["score_scale"] = 2 * 2 / 6  # METHOD's linear rise: step 1 of 6 is the second, and it ends at half-time
    at, score, _ = method.last
    assert torch.equal(at, particles())
    assert torch.equal(method.particles.grad, -svgd_direction(particles(), score, **given)[0])


def test_one_particle_with_sgd_is_plain_multi_task_prompt_tuning_bit_for_bit(make, tiny_backbone, train):
    start = particles(1)
    method = make(start, optimiser="sgd", learning_rate=0.1, weight_decay=0.01)
    outcome = Loop(method, method.settings).run()

    engine = HuggingFaceEngine(tiny_backbone)
    prompt = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.SGD([prompt], weight_decay=0.01)
    losses = []
    for step in range(6):
        inputs, targets, weights = [], [], []
        for k, name in enumerate(SOURCES):
            batch = train[name].rows(epoch_rows(24, 2, step, seed=0, task=k))
            inputs += batch.inputs
            targets += batch.targets
            weights += [1 / 2] * 2
        loss, prompt.grad = engine.gradients(prompt.detach(), TokenBatch(inputs, targets), torch.tensor(weights))
        losses.append(float((loss[0] * torch.tensor(weights)).sum()) / 3)
        optimiser.param_groups[0]["lr"] = 0.1 * ((6 - step) / 6)
        optimiser.step()
    assert torch.equal(outcome.tensors[0], prompt)
    assert outcome.state.losses == pytest.approx(losses, rel=1e-6)


def test_validation_gives_the_loss_of_the_mean_and_of_every_particle_on_held_back_rows(make, tiny_hf, held_back):
    method = make(particles())
    (event,) = method.validate([]).events
    for name in SOURCES:
        wanted = [mean_loss(tiny_hf, particle, held_back[name].batch).item() for particle in particles()]
        assert event["particle_nll"][name] == pytest.approx(wanted, rel=1e-5)
        mean = mean_loss(tiny_hf, particles().mean(dim=0), held_back[name].batch).item()
        assert event["mean_nll"][name] == pytest.approx(mean, rel=1e-5)


def test_a_validation_notes_where_the_particles_are_as_their_averages_over_rows(make):
    (validation,) = make(particles()).validate([]).events
    read = torch.from_numpy(read_positions(validation["positions"]))
    assert torch.allclose(read, particles().mean(dim=1).double(), rtol=1e-3, atol=1e-4)


def test_a_validation_behind_a_step_has_diagnostics_and_warns_of_a_worthless_mean(make):
    method = make(particles())
    method.backward(method.draw(0), 0)
    method.held_back_nll = lambda: {name: [5.0, 1.0, 1.0, 1.0] for name in SOURCES}
    validation, diagnostics = method.validate([1.0]).events
    assert validation["event"] == "validation"
    assert diagnostics["diagnostics"]["particle_rms"] == pytest.approx(
        particles().pow(2).mean(dim=(1, 2)).sqrt().tolist(), rel=1e-5
    )
    assert any("lies in no mode" in warning for warning in diagnostics["warnings"])


def test_diagnostics_describe_the_particles_that_the_score_belongs_to(make):
    """Not those that the optimiser has moved since."""
    method = make(particles())
    method.backward(method.draw(0), 0)
    with torch.no_grad():
        method.particles += 100 * torch.arange(M)[:, None, None]
    facts = method.validate([1.0]).events[1]["diagnostics"]
    wanted = torch.cdist(particles().flatten(1).double(), particles().flatten(1).double())
    assert torch.allclose(torch.tensor(facts["distances"]).double(), wanted, rtol=1e-5, atol=1e-5)


def test_identical_particles_stay_identical_and_finite(make):
    method = make(particles(1).repeat(M, 1, 1))
    outcome = Loop(method, method.settings).run()
    assert torch.isfinite(outcome.tensors[0]).all()
    assert torch.allclose(outcome.tensors[0], outcome.tensors[0][:1].expand(M, -1, -1), rtol=1e-4, atol=1e-4)


def test_training_lowers_the_loss_of_every_source(make):
    method = make(particles(), steps=40, learning_rate=0.3, evaluate_every=40)
    before = method.held_back_nll()
    Loop(method, method.settings).run()
    after = method.held_back_nll()
    for name in SOURCES:
        assert sum(after[name][1:]) < 0.95 * sum(before[name][1:])
