"""The examples where the truth is known, against closed forms."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize

QUICK = {"tasks": 3, "anisotropy": 5.0, "particles": 20, "steps": 100}


@pytest.fixture(scope="module")
def gaussian(example):
    return example("gaussian_analogy")


@pytest.fixture(scope="module")
def collapse(example):
    return example("collapse")


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def printed(module, monkeypatch, capsys, *arguments):
    """Run a script's main function; return what it prints."""
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    module.main()
    return capsys.readouterr().out


# Averages of Gaussians


def test_the_product_of_gaussians_has_the_closed_forms_mean_and_covariance(gaussian):
    means, precisions = gaussian.draw_posteriors(3, 3, 5.0, 0)
    product, x = gaussian.product_of(means, precisions), draws(5, 3)
    normal = torch.distributions.MultivariateNormal
    each = [normal(m, precision_matrix=p).log_prob(x) for m, p in zip(means, precisions, strict=True)]
    reference = normal(product.mean, precision_matrix=product.precision).log_prob(x)
    assert (torch.stack(each).sum(0) - reference).std() < 1e-9  # equal but for the constant that normalises


@pytest.mark.parametrize("seed", range(4))
def test_the_best_convex_combination_is_the_constrained_minimum(gaussian, seed):
    means, precisions = gaussian.draw_posteriors(3, 3, 5.0, seed)
    product = gaussian.product_of(means, precisions)
    found = product.error(gaussian.best_convex_combination(means, product))

    def of_weights(logits):
        return product.error(torch.softmax(torch.from_numpy(logits), dim=0) @ means)

    starts = np.random.default_rng(0).normal(0, 2, (8, 3))
    best = min(minimize(of_weights, start, method="Nelder-Mead").fun for start in starts)
    assert found == pytest.approx(best, abs=1e-3)


def test_svgd_reaches_the_product_where_no_average_of_the_means_does(gaussian):
    errors = gaussian.estimates(2, 3, **QUICK)
    assert errors.pop("SVGD") < 0.05
    assert min(errors.values()) > 1.0
    assert errors["best convex combination"] == min(errors.values())


def test_on_an_isotropic_gaussian_svgd_ends_at_the_simplex_of_the_golden_fact(gaussian):
    n, M = 12, 5
    target = gaussian.Gaussian(draws(n, seed=3), torch.eye(n, dtype=torch.float64))
    particles = gaussian.svgd(target, draws(M, n), steps=300)
    assert (particles.mean(0) - target.mean).abs().max() < 1e-3
    squared = torch.cdist(particles, particles)[torch.triu(torch.ones(M, M), 1) == 1] ** 2
    assert torch.allclose(squared, torch.full_like(squared, 2 * math.log(M + 1)), rtol=1e-2)


def test_the_script_prints_a_row_per_estimate_and_draws_the_plane(gaussian, monkeypatch, capsys, tmp_path):
    picture = tmp_path / "plane.svg"
    said = printed(
        gaussian, monkeypatch, capsys, "--dimensions", "2", "--seeds", "1", "--steps", "5", "--plot", str(picture)
    )
    assert len(said.splitlines()) == 5
    assert "best convex combination" in picture.read_text() or "<svg" in picture.read_text()


# Modes and variance


@pytest.mark.parametrize("freedom", [None, 3.0])
def test_the_mixtures_score_is_the_gradient_of_its_log_density(collapse, freedom):
    modes = 2 * draws(3, 4)
    x = (3 * draws(7, 4, seed=1)).requires_grad_(True)
    squared = (x[:, None] - modes).square().sum(-1)
    logs = -squared / 2 if freedom is None else -(freedom + 4) / 2 * torch.log1p(squared / freedom)
    (wanted,) = torch.autograd.grad(torch.logsumexp(logs, dim=1).sum(), x)
    torch.testing.assert_close(collapse.Mixture(modes, freedom).score(x.detach()), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("freedom", [None, 6.0])
def test_the_mixtures_variance_is_that_of_draws_from_it(collapse, freedom):
    rng = np.random.default_rng(0)
    modes = torch.tensor([[4.0, 0.0], [-1.0, 2.0], [0.0, -5.0]], dtype=torch.float64)
    noise = rng.standard_normal((200_000, 2))
    if freedom is not None:
        noise = stats.multivariate_t(shape=np.eye(2), df=freedom).rvs(200_000, random_state=rng)
    x = modes.numpy()[rng.integers(3, size=200_000)] + noise
    assert x.var(0).mean() == pytest.approx(collapse.Mixture(modes, freedom).variance, rel=0.02)


def test_the_variance_ratio_is_the_closed_form_of_variance_collapse(collapse):
    """(M−1)/M·log(M+1)/n at n ≥ M − 1 (docs/method.md, section 1)."""
    found = collapse.measure("gaussian", 10, 0, "as the paper", particles=5, steps=600, modes=1, separation=6.0)
    assert found["variance ratio"] == pytest.approx(4 / 5 * math.log(6) / 10, rel=1e-2)
    assert found["mean error"] < 1e-3
    assert found["covered modes"] == 1


@pytest.mark.parametrize("dimension", [2, 4, 20])
def test_the_modes_lie_at_one_distance_from_the_centre_and_apart(collapse, dimension):
    modes = collapse.make_target("gaussian mixture", dimension, modes=4, separation=6.0, seed=0).modes
    assert torch.allclose(modes.norm(dim=1), torch.full((4,), 6.0, dtype=torch.float64))
    apart = torch.cdist(modes, modes) + 100 * torch.eye(4, dtype=torch.float64)
    assert apart.min() == pytest.approx(6 * math.sqrt(2))


@pytest.mark.parametrize(("chosen", "covered"), [([0, 0, 0], 1), ([0, 1, 1], 2), ([0, 1, 2, 3], 4), ([], 0)])
def test_covered_modes_counts_the_modes_that_draws_come_from_in_any_dimension(collapse, chosen, covered):
    target = collapse.make_target("gaussian mixture", 60, modes=4, separation=6.0, seed=0)
    particles = target.modes[chosen] + 0.5 * draws(len(chosen), 60) if chosen else torch.zeros(3, 60).double()
    assert collapse.covered_modes(particles, target, within=3.0) == covered


def test_the_script_prints_a_row_per_cure(collapse, monkeypatch, capsys):
    arguments = ("--targets", "student mixture", "--dimensions", "2", "--steps", "3", "--particles", "4")
    said = printed(collapse, monkeypatch, capsys, *arguments)
    assert len(said.splitlines()) == 1 + len(collapse.CURES)
