"""What a readout's posterior adds to its MAP, against full Hessians, quadrature and sampling."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm
from torch import Tensor

from bmtpt.posterior.readout import DIRECTIONS, Labelled, Readout, Spread, Texts, Widths, standardised

WIDTHS = Widths(offset=0.8, weights=1.3)


def drawn(rows: int, words: int, width: int = 6, seed: int = 0) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    scores = (2 * torch.randn(rows, words, generator=generator)).log_softmax(dim=1).double()
    labels = torch.randint(words, (rows,), generator=generator)
    return Labelled(scores, torch.randn(rows, width, generator=generator).double() * 3 + 1, labels)


def inputs(states: Tensor, scale: tuple[Tensor, Tensor], widths: Widths) -> Tensor:
    """φ, written down from the equation."""
    mean, std = scale
    own = widths.weights * (states - mean) / (std * math.sqrt(states.shape[1]))
    return torch.cat([torch.full((len(states), 1), widths.offset, dtype=torch.float64), own], dim=1)


def contrasts(p: Tensor, taught: Tensor, asked: Tensor) -> Tensor:
    """Var(z_c − z_0)/2 [N, C−1] of texts by the full Hessian over every word's weights, in units of their prior."""
    words, width = p.shape[1], taught.shape[1]
    H = torch.eye(words * width, dtype=torch.float64)
    for own, x in zip(p, taught, strict=True):
        H += torch.kron(own.diag() - own[:, None] * own, x[:, None] * x)
    covariance = torch.linalg.inv(H).reshape(words, width, words, width)
    joint = torch.einsum("nd,cdef,nf->nce", asked, covariance, asked)  # of z
    own = torch.diagonal(joint, dim1=1, dim2=2)
    return (own[:, 1:] + own[:, :1] - 2 * joint[:, 0, 1:]) / 2


@pytest.mark.parametrize("words", [2, 3, 7])
def test_where_all_words_are_equally_likely_the_variance_is_that_of_the_full_hessian(words):
    taught, asked = drawn(9, words), drawn(5, words, seed=1).states
    scale, p = standardised(taught.states), torch.full((9, words), 1 / words, dtype=torch.float64)
    found = Spread.of(taught.states, p, WIDTHS, scale).variance(asked)
    exact = contrasts(p, inputs(taught.states, scale, WIDTHS), inputs(asked, scale, WIDTHS))
    torch.testing.assert_close(found.expand_as(exact), exact, rtol=1e-9, atol=0)


def test_with_two_words_and_one_text_it_is_that_of_the_full_hessian_at_the_map():
    taught, asked = drawn(1, 2), drawn(5, 2, seed=1).states
    more = Texts(drawn(8, 2, seed=2).scores, drawn(8, 2, seed=2).states)
    scale = standardised(torch.cat([taught.states, more.states]))
    readout = taught.fit(WIDTHS, more, spread=True)
    p = replace(readout, spread=None).logits(taught.scores, taught.states).softmax(dim=1)
    exact = contrasts(p, inputs(taught.states, scale, WIDTHS), inputs(asked, scale, WIDTHS))
    torch.testing.assert_close(readout.spread.variance(asked), exact, rtol=1e-9, atol=0)


def test_an_offset_alone_has_one_variance_for_every_text():
    taught, widths = drawn(6, 3), Widths(offset=0.8, weights=0.0)
    readout = taught.fit(widths, spread=True)
    p = replace(readout, spread=None).logits(taught.scores, taught.states).softmax(dim=1)
    gamma = float((1 - p.square().sum(dim=1)).mean()) / 2
    wanted = 1 / (1 / 0.8**2 + 6 * gamma)
    torch.testing.assert_close(readout.spread.variance(taught.states), torch.full((6, 1), wanted).double())


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 50), words=st.integers(2, 5), width=st.integers(1, 60), seed=st.integers(0, 99))
def test_labels_only_ever_take_variance_away_and_keep_the_likeliest_word(rows, words, width, seed):
    taught, asked = drawn(rows, words, width, seed), drawn(7, words, width, seed + 1)
    readout = taught.fit(WIDTHS, spread=True)
    spread = readout.spread
    prior = spread.inputs(asked.states).square().sum(dim=1, keepdim=True)
    assert len(spread.directions) <= DIRECTIONS
    assert bool(((spread.variance(asked.states) > 0) & (spread.variance(asked.states) <= prior + 1e-9)).all())
    z, at_map = (each.logits(asked.scores, asked.states) for each in (readout, replace(readout, spread=None)))
    assert torch.equal(z.argmax(dim=1), at_map.argmax(dim=1))
    assert bool((z.softmax(dim=1).amax(dim=1) <= at_map.softmax(dim=1).amax(dim=1) + 1e-12).all())


def test_far_from_every_labelled_text_it_is_less_sure_than_near_one():
    taught = drawn(12, 2)
    spread = taught.fit(WIDTHS, spread=True).spread
    far = taught.states.mean(dim=0) + 40 * torch.ones(6).double()
    assert float(spread.variance(far[None])) > 5 * float(spread.variance(taught.states).max())


def one_text(z: Tensor, v: float) -> Readout:
    """A readout that gives a text these logits with this variance."""
    spread = Spread(math.sqrt(v), torch.zeros(1).double(), torch.zeros(1).double(), torch.zeros(0, 2).double())
    return Readout(0.0, z, None, spread)


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("gap", [-4.0, -1.0, 0.0, 0.5, 2.0, 6.0])
def test_with_two_words_the_mean_probability_is_that_of_quadrature(gap, v):
    z = torch.tensor([gap, 0.0], dtype=torch.float64)
    found = one_text(z, v).logits(torch.zeros(1, 2), torch.zeros(1, 1)).softmax(dim=1)[0, 0]
    exact = quad(lambda t: expit(gap + math.sqrt(2 * v) * t) * norm.pdf(t), -9, 9)[0]
    assert float(found) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("v", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("words", [2, 3, 4, 8, 20, 77])
def test_the_mean_probabilities_of_many_words_are_those_of_samples_within_hundredths_of_a_nat(words, v):
    generator = torch.Generator().manual_seed(words)
    lost = {"mean": 0.0, "map": 0.0}
    for z in 2 * torch.randn(20, words, generator=generator).double():
        noise = torch.randn(4_000, words, generator=generator).double()
        sampled = (z + math.sqrt(v) * noise).softmax(dim=1).mean(dim=0)
        found = one_text(z, v).logits(torch.zeros(1, words), torch.zeros(1, 1))[0]
        for name, own in (("mean", found), ("map", z)):
            lost[name] += float((sampled * (sampled.log() - own.log_softmax(dim=0))).sum()) / 20
    assert lost["mean"] < 0.006
    assert lost["mean"] < lost["map"] / 2


def test_more_directions_than_are_kept_would_only_take_more_variance_away():
    taught, asked = drawn(60, 2, 50), drawn(9, 2, 50, seed=1).states
    given = taught.states, torch.full((60, 2), 0.5).double(), WIDTHS, standardised(taught.states)
    kept, whole = Spread.of(*given), Spread.of(*given, most=None)
    assert (len(kept.directions), len(whole.directions)) == (DIRECTIONS, 51)
    assert bool((whole.variance(asked) <= kept.variance(asked)).all())


def test_a_temperature_divides_what_is_averaged_already():
    taught = drawn(9, 3)
    readout = taught.fit(WIDTHS, spread=True)
    z = readout.logits(taught.scores, taught.states)
    torch.testing.assert_close(readout.tempered(2.0).logits(taught.scores, taught.states), z / 2)
