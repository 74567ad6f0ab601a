"""The MAP readout against closed forms, bisection, quadrature, autograd and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from bmtpt.posterior.readout import Readout, Widths, fit, label_free_offset, log_evidence, standardised


def drawn(rows: int, words: int, seed: int = 0, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and features."""
    generator = torch.Generator().manual_seed(seed)
    scores = (2 * torch.randn(rows, words, generator=generator)).log_softmax(dim=1).double()
    labels = torch.randint(words, (rows,), generator=generator)
    return scores, labels, torch.randn(rows, width, generator=generator).double() * 3 + 1


def negative_log_posterior(readout: Readout, data: tuple[Tensor, Tensor, Tensor], widths: Widths) -> Tensor:
    """Written down from the equations, for weights of standardised features."""
    scores, labels, features = data
    mean, std = standardised(features)
    z = readout.slope * scores + readout.offset + features @ (readout.weights).T
    unit = std * math.sqrt(features.shape[1])
    own, offset = readout.weights * unit, readout.offset + readout.weights @ mean
    nll = -z.log_softmax(dim=1)[range(len(labels)), labels].sum()
    penalty = (readout.slope - 1) ** 2 / widths.slope**2 + offset.square().sum() / widths.offset**2
    return nll + (penalty + own.square().sum() / widths.weights**2) / 2


def test_flat_likelihoods_and_a_wide_prior_give_the_centred_log_frequencies():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    found = fit(torch.zeros(10, 3), labels, Widths(1e4, 0, 0)).offset
    wanted = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    torch.testing.assert_close(found, wanted - wanted.mean(), atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 20), words=st.integers(2, 6), std=st.floats(0.1, 5), seed=st.integers(0, 99))
def test_at_the_map_offset_observed_minus_expected_counts_equal_the_prior_pull(rows, words, std, seed):
    scores, labels, _ = drawn(rows, words, seed)
    b = fit(scores, labels, Widths(std, 0, 0)).offset
    expected = (scores + b).softmax(dim=1).sum(dim=0)
    observed = torch.bincount(labels, minlength=words)
    torch.testing.assert_close(observed - expected, b / std**2, atol=1e-6, rtol=0)
    assert abs(b.sum()) < 1e-6


def test_with_two_words_the_offset_is_the_root_that_bisection_finds():
    scores, labels, _ = drawn(9, 2)
    std, gap, right = 1.3, (scores[:, 1] - scores[:, 0]).numpy(), labels.numpy()
    # d = b₁ − b₀ ~ N(0, 2σ²)
    root = brentq(lambda d: (right - 1 / (1 + np.exp(-gap - d))).sum() - d / (2 * std**2), -50, 50, xtol=1e-12)
    b = fit(scores, labels, Widths(std, 0, 0)).offset
    assert float(b[1] - b[0]) == pytest.approx(root, abs=1e-8)


def test_laplaces_evidence_is_within_hundredths_of_a_nat_of_quadrature():
    scores, labels, _ = drawn(9, 2)
    std, gap, sign = 1.3, (scores[:, 1] - scores[:, 0]).numpy(), 2 * labels.numpy() - 1

    def joint(d: float) -> float:
        return math.exp(-np.logaddexp(0, -sign * (gap + d)).sum() - d**2 / (4 * std**2)) / math.sqrt(
            4 * math.pi * std**2
        )

    exact = math.log(quad(joint, -30, 30, epsabs=1e-14)[0])
    assert log_evidence(scores, labels, Widths(std, 0, 0)) == pytest.approx(exact, abs=0.05)


def test_without_widths_nothing_is_fitted_and_the_evidence_is_the_likelihood():
    scores, labels, features = drawn(9, 3)
    likelihood = float(scores.log_softmax(dim=1)[range(9), labels].sum())
    for widths in (Widths(0, 0, 0), Widths(1e-6, 0, 0), Widths(offset=1e-6, weights=1e-6, slope=1e-6)):
        found = fit(scores, labels, widths, features)
        assert found.offset.abs().max() < 1e-9
        assert found.slope == pytest.approx(1)
        assert log_evidence(scores, labels, widths, features) == pytest.approx(likelihood, abs=1e-6)


def test_a_constant_on_all_scores_of_a_row_changes_nothing():
    scores, labels, features = drawn(12, 4)
    moved = scores + torch.randn(12, 1, dtype=torch.float64)
    widths = Widths(offset=1.0, weights=1.0, slope=0.5)
    here, there = fit(scores, labels, widths, features), fit(moved, labels, widths, features)
    torch.testing.assert_close(here.offset, there.offset, atol=1e-7, rtol=0)
    assert here.slope == pytest.approx(there.slope, abs=1e-7)


def test_when_the_labels_shift_the_offset_finds_the_log_ratio_of_the_priors():
    generator = np.random.default_rng(0)
    means, shares = np.array([-1.0, 0.0, 1.5]), np.array([0.6, 0.3, 0.1])
    labels = generator.choice(3, 40_000, p=shares)
    x = means[labels] + generator.normal(size=len(labels))
    exact = torch.from_numpy(-((x[:, None] - means) ** 2) / 2)  # log-likelihoods for equal shares
    found = fit(exact, torch.from_numpy(labels), Widths(1e3, 0, 0)).offset.numpy()
    np.testing.assert_allclose(found, np.log(shares) - np.log(shares).mean(), atol=0.06)


def test_the_linear_readout_without_words_is_scikit_learns_logistic_regression():
    scores, labels, features = drawn(30, 3)
    mean, std = standardised(features)
    std_features = ((features - mean) / std / math.sqrt(features.shape[1])).numpy()
    widths = Widths(1e3, 1.7, 0)  # its intercept has no prior
    peer = LogisticRegression(C=widths.weights**2, tol=1e-10, max_iter=10_000).fit(std_features, labels.numpy())
    found = fit(torch.zeros_like(scores), labels, widths, features)
    here = found.logits(torch.zeros_like(scores), features).softmax(dim=1)
    np.testing.assert_allclose(here.numpy(), peer.predict_proba(std_features), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 20), words=st.integers(2, 5), width=st.integers(1, 30), seed=st.integers(0, 99))
def test_no_step_from_the_map_readout_lowers_the_objective(rows, words, width, seed):
    data, widths = drawn(rows, words, seed, width), Widths(offset=0.8, weights=1.2, slope=0.4)
    found = fit(data[0], data[1], widths, data[2])
    leaves = [torch.tensor(found.slope, dtype=torch.float64), found.offset, found.weights]
    leaves = [each.clone().requires_grad_(True) for each in leaves]
    gradients = torch.autograd.grad(negative_log_posterior(Readout(*leaves), data, widths), leaves)
    assert max(float(each.abs().max()) for each in gradients) < 1e-5


def test_the_evidence_of_all_parts_is_the_laplace_integral_over_every_weight():
    data, widths = drawn(5, 3, width=4), Widths(offset=0.8, weights=1.2, slope=0.4)
    scores, labels, features = data
    found = fit(scores, labels, widths, features)
    mean, std = standardised(features)
    h = (features - mean) / std / math.sqrt(features.shape[1])
    flat = torch.cat(
        [
            torch.tensor([found.slope], dtype=torch.float64),
            found.offset + found.weights @ mean,
            (found.weights * std * math.sqrt(features.shape[1])).flatten(),
        ]
    )
    variance = torch.tensor([widths.slope**2] + [widths.offset**2] * 3 + [widths.weights**2] * 12, dtype=torch.float64)
    centre = torch.zeros(16, dtype=torch.float64)
    centre[0] = 1

    def negative_log_joint(at: Tensor) -> Tensor:
        z = at[0] * scores + at[1:4] + h @ at[4:].view(3, 4).T
        nll = -z.log_softmax(dim=1)[range(len(labels)), labels].sum()
        return nll + ((at - centre) ** 2 / variance + (2 * math.pi * variance).log()).sum() / 2

    hessian = torch.autograd.functional.hessian(negative_log_joint, flat)
    laplace = -negative_log_joint(flat) + (16 * math.log(2 * math.pi) - torch.linalg.slogdet(hessian)[1]) / 2
    assert log_evidence(scores, labels, widths, features) == pytest.approx(float(laplace), abs=1e-6)


def test_the_order_of_the_label_words_does_not_matter():
    scores, labels, features = drawn(12, 4)
    order = torch.tensor([2, 0, 3, 1])
    widths = Widths(offset=1.0, weights=1.0, slope=0.5)
    here = fit(scores, labels, widths, features)
    there = fit(scores[:, order], order.argsort()[labels], widths, features)
    torch.testing.assert_close(
        here.logits(scores, features)[:, order], there.logits(scores[:, order], features), atol=1e-6, rtol=0
    )


def test_one_row_and_features_that_do_not_vary_are_no_trouble():
    found = fit(torch.zeros(1, 2), torch.tensor([1]), Widths(1.0, 1.0, 0), torch.ones(1, 3))
    assert found.offset[1] > found.offset[0]
    assert torch.isfinite(found.weights).all()


def test_before_any_label_the_offset_takes_back_what_the_model_prefers():
    scores, labels, _ = drawn(200, 3)
    bias = torch.tensor([5.0, 0.0, -2.0], dtype=torch.float64)
    shares = (scores + bias + label_free_offset(scores + bias)).softmax(dim=1).mean(dim=0)
    assert float(shares.max() - shares.min()) < 0.1
    # However much the model prefers a word, a few labels lead to the same answers.
    widths, few = Widths(1.0, 0, 0), scores[:4]
    here = fit(few, labels[:4], widths, centre=label_free_offset(few))
    there = fit(few + bias, labels[:4], widths, centre=label_free_offset(few + bias))
    wanted, found = (each.softmax(dim=1) for each in (here.logits(scores), there.logits(scores + bias)))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
