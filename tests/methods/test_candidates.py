"""Which starts and priors each method lets compete."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bmtpt.methods.map_target import map_candidates, posterior_candidates, starts
from bmtpt.methods.prompt_tuning import anchored_candidates, plain_candidates
from bmtpt.methods.registry import Learned, Setup
from bmtpt.methods.source_ensemble import ensemble_candidates
from bmtpt.methods.source_mean import source_mean_candidate
from bmtpt.methods.spot import spot_candidates
from bmtpt.settings import AdaptSettings

M, P, D = 4, 2, 3
PARTICLES = torch.randn(M, P, D, generator=torch.Generator().manual_seed(0))
NLL = [2.0, 0.5, 1.0, 3.0]


def settings(**changes: object) -> AdaptSettings:
    return AdaptSettings.model_validate(changes)


@pytest.mark.parametrize(
    ("start", "names"),
    [
        ("mean", ["mean"]),
        ("best", ["particle 1"]),
        ("particles", ["particle 0", "particle 1", "particle 2", "particle 3"]),
        ("auto", ["mean", "particle 1"]),
    ],
)
def test_starts_are_the_ones_asked_for(start, names):
    found = starts(PARTICLES, NLL, settings(start=start))
    assert [name for name, _ in found] == names
    for name, prompt in found:
        wanted = PARTICLES.mean(dim=0) if name == "mean" else PARTICLES[int(name.split()[1])]
        assert torch.equal(prompt, wanted)


def test_the_mean_of_one_particle_does_not_compete_with_itself():
    assert [name for name, _ in starts(PARTICLES[:1], [1.0], settings(start="auto"))] == ["mean"]


def test_an_ensemble_starts_from_every_particle():
    assert len(starts(PARTICLES, NLL, settings(start="mean", ensemble=True))) == M


def test_an_automatic_std_tries_the_grid_and_no_prior_for_every_start():
    found = map_candidates(PARTICLES, NLL, settings(prior_std="auto", prior_std_grid=(0.5, 2), prior="mixture"))
    assert [(c.start_name, c.prior, c.prior_std) for c in found] == [
        (name, prior, std)
        for name in ("mean", "particle 1")
        for prior, std in (("mixture", 0.5), ("mixture", 2.0), ("none", None))
    ]


@pytest.mark.parametrize(
    ("changes", "prior", "std"),
    [
        ({"prior_std": 0.7}, "mean", 0.7),
        ({"prior": "none"}, "none", None),
        ({"prior": "none", "prior_std": 1}, "none", None),
    ],
)
def test_a_fixed_std_and_no_prior_give_one_candidate_a_start(changes, prior, std):
    (found,) = map_candidates(PARTICLES, NLL, settings(start="mean", **changes))
    assert (found.prior, found.prior_std) == (prior, std)
    assert found.describe() == {"start": "mean", "prior": prior, "prior_std": std}


def test_plain_prompt_tuning_starts_from_different_rows_of_the_vocabulary(tiny_backbone):
    found = plain_candidates(tiny_backbone, 5, seed=0, count=3)
    table = {tuple(row) for row in tiny_backbone.frequent_rows().tolist()}
    assert all(tuple(row) in table for candidate in found for row in candidate.start.tolist())
    assert not torch.equal(found[0].start, found[1].start)
    assert all(candidate.prior == "none" and candidate.prior_std is None for candidate in found)
    again = plain_candidates(tiny_backbone, 5, seed=0, count=1)
    assert torch.equal(again[0].start, found[0].start)


@pytest.mark.parametrize(("changes", "std"), [({"prior_std": 3}, 3.0), ({}, 30.0), ({"prior": "none"}, None)])
def test_prompt_tuning_with_a_prior_has_it_around_its_own_start(tiny_backbone, changes, std):
    chosen = AdaptSettings.model_validate({"prior_std_grid": [30.0, 60.0], **changes})
    setup = SimpleNamespace(backbone=tiny_backbone, settings=chosen, prompt_length=4, budget=2)
    found, plain = anchored_candidates(setup), plain_candidates(tiny_backbone, 4, chosen.seed, 2)
    for own, other in zip(found, plain, strict=True):
        assert torch.equal(own.start, other.start)
        assert own.prior_std == std
        assert own.centre is None if std is None else torch.equal(own.centre, own.start)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"start": "auto"}, ["mean", "mean", "vocabulary draw 0"]),
        ({"start": "mean"}, ["mean", "mean"]),
        ({"start": "mean", "average": "starts"}, ["mean", "mean", "vocabulary draw 0"]),
        ({"start": "auto", "average": "starts"}, ["mean", "mean", "vocabulary draw 0"]),
        ({"start": "auto", "ensemble": True}, ["particle 0", "particle 0"]),
    ],
)
def test_a_vocabulary_draw_competes_where_the_start_is_automatic(tiny_backbone, changes, names):
    chosen = settings(prior_std_grid=[30.0], **changes)
    one = torch.randn(1, 4, tiny_backbone.model.config.d_model, generator=torch.Generator().manual_seed(1))
    posterior = SimpleNamespace(particles=one)
    setup = Setup(tiny_backbone, {}, chosen, None, budget=1, prompt_length=7, learned=Learned(("a",), posterior))
    found = posterior_candidates(setup)
    assert [candidate.start_name for candidate in found] == names
    if names[-1].startswith("vocabulary"):
        assert torch.equal(found[-1].start, plain_candidates(tiny_backbone, 4, chosen.seed)[0].start)
        assert torch.equal(found[-1].centre, found[-1].start)  # its prior is around itself


class Rows(list[str]):
    """Rows whose batch names them."""

    @property
    def batch(self) -> list[str]:
        return self


class Losses:
    """An engine whose losses are given by the rows: `NLL` on the validation rows, the opposite order on the others."""

    def losses(self, prompts: torch.Tensor, batch: list[str]) -> torch.Tensor:
        return torch.tensor(NLL if batch == ["validation"] else [-nll for nll in NLL])[:, None]


def sourced(budget: int = 1, select: tuple[str, ...] = ("validation",)) -> SimpleNamespace:
    """What a method of four source prompts a, b, c and d looks at."""
    prompts = {name: PARTICLES[i] for i, name in enumerate("abcd")}
    rows = {"target": SimpleNamespace(train=Rows(["train"]), select=Rows(select))}
    return SimpleNamespace(learned=Learned(tuple(prompts), prompts=prompts), engine=Losses(), rows=rows, budget=budget)


def test_spot_starts_from_the_sources_with_the_lowest_loss():
    assert [c.start_name for c in spot_candidates(sourced())] == ["source b"]
    assert [c.start_name for c in spot_candidates(sourced(3))] == ["source b", "source c", "source a"]
    assert torch.equal(spot_candidates(sourced())[0].start, PARTICLES[1])


def test_spot_looks_at_the_training_rows_where_none_are_held_back():
    assert [c.start_name for c in spot_candidates(sourced(select=()))] == ["source d"]


def test_the_mean_of_source_prompts_is_their_mean():
    (found,) = source_mean_candidate(sourced())
    assert torch.allclose(found.start, PARTICLES.mean(dim=0), atol=1e-7)


def test_an_ensemble_of_source_prompts_starts_from_each_of_them():
    found = ensemble_candidates(sourced())
    assert [c.start_name for c in found] == ["source a", "source b", "source c", "source d"]
    assert all(torch.equal(c.start, PARTICLES["abcd".index(c.start_name[-1])]) and c.prior == "none" for c in found)
