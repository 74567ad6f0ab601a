"""The MAP temperature against closed forms, bisection and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor

from bmtpt.posterior.readout import Readout
from bmtpt.posterior.temperature import LIMIT, fit_temperature, log_shares


def drawn(rows: int, words: int = 3, prompts: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(prompts, rows, words, generator=generator).double()
    return z, torch.randint(words, (rows,), generator=generator)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 30), words=st.integers(2, 5), width=st.floats(0.1, 0.6), seed=st.integers(0, 99))
def test_the_temperature_of_one_prompt_is_the_root_that_bisection_finds(rows, words, width, seed):
    z, labels = drawn(rows, words, seed=seed)

    def slope(log_t: float) -> float:
        """Derivative of the negative log posterior in log T: Σ_n (z_y − E z)/T + log T/σ²."""
        own = z[0] / math.exp(log_t)
        gap = own[range(rows), labels] - (own.softmax(dim=1) * own).sum(dim=1)
        return float(gap.sum()) + log_t / width**2

    assert math.log(fit_temperature(z, labels, width)) == pytest.approx(brentq(slope, -LIMIT, LIMIT), abs=1e-5)


@pytest.mark.parametrize(("right", "gap"), [(60, 3.0), (90, 1.0), (99, 2.0)])
def test_without_a_prior_confidence_becomes_the_share_of_right_answers(right, gap):
    z = torch.tensor([[gap, 0.0]]).double().expand(1, 100, 2)
    labels = torch.tensor([0] * right + [1] * (100 - right))
    wanted = gap / math.log(right / (100 - right))  # sigmoid(gap/T) = right/100
    assert fit_temperature(z, labels, 1e3) == pytest.approx(wanted, rel=1e-5)
    assert log_shares(z, wanted)[0, 0].exp() == pytest.approx(right / 100)


def test_the_temperature_that_drew_the_labels_is_found():
    z, _ = drawn(5_000, seed=3)
    labels = torch.multinomial((z[0] / 2.0).softmax(dim=1), 1, generator=torch.Generator().manual_seed(4))[:, 0]
    assert fit_temperature(z, labels) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_a_tighter_prior_pulls_the_temperature_to_1(seed):
    z, labels = drawn(12, seed=seed)
    distances = [abs(math.log(fit_temperature(z, labels, width))) for width in (10.0, 1.0, 0.1, 0.01, 0.001)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4


def test_four_rows_give_no_extreme_temperature():
    z = torch.eye(4).double()[None] * 20
    assert 0.5 < fit_temperature(z, torch.arange(4)) <= 1  # right by far: the likelihood alone would say 0
    assert 1 < fit_temperature(z, torch.tensor([0, 1, 2, 0])) < 6  # it alone would say 9
    assert fit_temperature(z, torch.tensor([1, 2, 3, 0])) < 20  # wrong by far: it alone would say ∞


def test_no_row_leaves_the_temperature_at_1():
    assert fit_temperature(torch.zeros(1, 0, 3), torch.zeros(0, dtype=torch.long)) == pytest.approx(1.0, abs=1e-6)


def test_the_temperature_of_an_ensemble_is_that_of_its_averaged_probabilities():
    z, labels = drawn(20, prompts=3, seed=1)
    grid = np.exp(np.linspace(-LIMIT, LIMIT, 6001))

    def objective(t: float) -> float:
        p = np.exp(z.numpy() / t)
        p = (p / p.sum(axis=2, keepdims=True)).mean(axis=0)
        return float(-np.log(p[range(20), labels.numpy()]).sum() + np.log(t) ** 2 / (2 * 0.5**2))

    assert fit_temperature(z, labels) == pytest.approx(min(grid, key=objective), rel=2e-3)
    one = z[:1]
    assert fit_temperature(one.expand(4, -1, -1), labels) == pytest.approx(fit_temperature(one, labels), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), temperature=st.floats(0.05, 20))
def test_a_temperature_changes_no_answer_of_one_prompt(seed, temperature):
    z, labels = drawn(10, 4, seed=seed)
    assert torch.equal(log_shares(z, temperature).argmax(dim=1), z[0].argmax(dim=1))
    shifted = z + torch.arange(10).double()[None, :, None]  # a constant a row says nothing
    order = [2, 0, 3, 1]
    renamed = torch.tensor([order.index(label) for label in labels.tolist()])
    for other, right in ((shifted, labels), (z[:, :, order], renamed)):
        assert fit_temperature(other, right) == pytest.approx(fit_temperature(z, labels), rel=1e-6)


def test_a_tempered_readout_has_the_logits_over_the_temperature():
    s, h = torch.randn(5, 3).double(), torch.randn(5, 7).double()
    readout = Readout(0.8, torch.randn(3).double(), torch.randn(3, 7).double())
    torch.testing.assert_close(readout.tempered(1.7).logits(s, h), readout.logits(s, h) / 1.7, atol=1e-12, rtol=0)
