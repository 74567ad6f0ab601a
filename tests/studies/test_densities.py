"""Studies where the truth is known, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize

from bmtpt.settings import LearnSettings
from bmtpt.studies import collapse, gaussian
from bmtpt.studies.densities import Gaussian, Mixture, svgd
from bmtpt.studies.smoothing import blurred_share, neighbours
from bmtpt.studies.spec import CollapseSpec, GaussianSpec

SETTINGS = LearnSettings(steps=300, learning_rate=0.1, weight_decay=0.0, evaluate_every=300, particles=5)


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def autograd_score(log_density, x):
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(log_density(x).sum(), x)
    return gradient


# Scores


def test_the_gaussian_score_is_that_of_torchs_distribution():
    root = draws(4, 4)
    precision = root @ root.T + torch.eye(4, dtype=torch.float64)
    density = Gaussian(draws(4, seed=1), precision)
    reference = torch.distributions.MultivariateNormal(density.mean, precision_matrix=precision)
    x = draws(6, 4, seed=2)
    torch.testing.assert_close(density.score(x), autograd_score(reference.log_prob, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("freedom", [None, 3.0])
def test_the_mixtures_score_is_the_gradient_of_its_log_density(freedom):
    modes = 2 * draws(3, 4)

    def log_density(x):
        squared = (x[:, None] - modes).square().sum(-1)
        logs = -squared / 2 if freedom is None else -(freedom + 4) / 2 * torch.log1p(squared / freedom)
        return torch.logsumexp(logs, dim=1)

    x = 3 * draws(7, 4, seed=1)
    found = Mixture(modes, freedom).score(x)
    torch.testing.assert_close(found, autograd_score(log_density, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("freedom", [None, 6.0])
def test_the_mixtures_moments_are_those_of_draws_from_it(freedom):
    rng = np.random.default_rng(0)
    modes = torch.tensor([[4.0, 0.0], [-1.0, 2.0], [0.0, -5.0]], dtype=torch.float64)
    which = rng.integers(3, size=200_000)
    noise = rng.standard_normal((200_000, 2))
    if freedom is not None:
        noise = stats.multivariate_t(shape=np.eye(2), df=freedom).rvs(200_000, random_state=rng)
    x = modes.numpy()[which] + noise
    target = Mixture(modes, freedom)
    assert np.allclose(x.mean(0), target.mean.numpy(), atol=0.05)
    assert x.var(0).mean() == pytest.approx(target.variance, rel=0.02)


# SVGD in the loop


def test_on_an_isotropic_gaussian_svgd_ends_at_the_simplex_of_the_golden_fact():
    n, M = 12, 5
    mean = draws(n, seed=3)
    particles, _ = svgd(Gaussian(mean, torch.eye(n, dtype=torch.float64)), draws(M, n // 2, 2), SETTINGS)
    assert (particles.mean(0) - mean).abs().max() < 1e-3
    squared = torch.cdist(particles, particles)[torch.triu(torch.ones(M, M), 1) == 1] ** 2
    assert torch.allclose(squared, torch.full_like(squared, 2 * math.log(M + 1)), rtol=1e-2)


def test_the_variance_ratio_is_the_closed_form_of_variance_collapse():
    """s²·(M−1)/M·log(M+1)/n at n ≥ M − 1 (docs/method.md, section 1)."""
    spec = CollapseSpec(name="c", distributions=("gaussian",), dimensions=(10,), learn=SETTINGS)
    bench = collapse.CollapseBench(spec)
    (job,) = bench.jobs()
    lines = {row.metric: row.value for row in bench.run(job, None)}
    assert lines["variance_ratio"] == pytest.approx(4 / 5 * math.log(6) / 10, rel=1e-2)
    assert lines["mean_error"] < 1e-3
    assert lines["covered_modes"] == 1


# Averages of Gaussians


def random_posteriors(seed, n=3):
    return gaussian.draw_posteriors(3, n, 5.0, seed)


def test_the_product_of_gaussians_has_the_closed_forms_mean_and_covariance():
    posteriors = random_posteriors(0)
    product = posteriors.product()
    x = draws(5, 3)
    each = [
        torch.distributions.MultivariateNormal(mean, precision_matrix=precision).log_prob(x)
        for mean, precision in zip(*posteriors, strict=True)
    ]
    logs = torch.stack(each).sum(0)
    reference = torch.distributions.MultivariateNormal(product.mean, precision_matrix=product.precision).log_prob(x)
    assert (logs - reference).std() < 1e-9  # equal but for the constant that normalises


@pytest.mark.parametrize("seed", range(4))
def test_the_best_convex_combination_is_the_constrained_minimum(seed):
    posteriors = random_posteriors(seed)
    product = posteriors.product()
    found = gaussian.error(gaussian.best_convex_combination(posteriors), product)

    def of_weights(logits):
        weights = torch.softmax(torch.from_numpy(logits), dim=0)
        return gaussian.error(weights @ posteriors.means, product)

    starts = np.random.default_rng(0).normal(0, 2, (8, 3))
    best = min(minimize(of_weights, start, method="Nelder-Mead").fun for start in starts)
    assert found == pytest.approx(best, abs=1e-3)


def test_svgd_reaches_the_product_where_no_average_of_the_means_does(tmp_path):
    settings = SETTINGS.model_copy(update={"particles": 20, "steps": 100})
    spec = GaussianSpec(name="g", seeds=(3,), dimensions=(2,), learn=settings)
    bench = gaussian.GaussianBench(spec)
    results = [row for job in bench.jobs() for row in bench.run(job, None)]
    errors = {row.method: row.value for row in results}
    assert errors["svgd"] < 0.05
    assert min(errors[name] for name in ("best_convex", "mean_of_means", "best_single")) > 1.0
    assert errors["best_convex"] <= min(errors["mean_of_means"], errors["best_single"]) + 1e-9
    bench.finish(results, tmp_path)
    picture = (tmp_path / gaussian.PICTURE).read_text()
    assert picture.startswith("<svg")
    assert "best convex combination" in picture


def test_the_picture_is_a_whole_svg_file(tmp_path):
    from xml.etree import ElementTree

    spec = GaussianSpec(name="g", dimensions=(2,), learn=SETTINGS.model_copy(update={"steps": 5}))
    assert ElementTree.fromstring(gaussian.picture(spec)).tag.endswith("svg")


# Modes


@pytest.mark.parametrize("dimension", [2, 4, 20])
def test_the_modes_lie_at_one_distance_from_the_centre_and_apart(dimension):
    spec = CollapseSpec(name="c", separation=6.0, modes=4, dimensions=(dimension,))
    modes = collapse.make_target(spec, "gaussian_mixture", dimension, seed=0).modes
    assert torch.allclose(modes.norm(dim=1), torch.full((4,), 6.0, dtype=torch.float64))
    apart = torch.cdist(modes, modes) + 100 * torch.eye(4, dtype=torch.float64)
    assert apart.min() == pytest.approx(6 * math.sqrt(2))


@pytest.mark.parametrize(("chosen", "covered"), [([0, 0, 0], 1), ([0, 1, 1], 2), ([0, 1, 2, 3], 4), ([], 0)])
def test_covered_modes_counts_the_modes_that_draws_come_from_in_any_dimension(chosen, covered):
    n = 60
    target = collapse.make_target(CollapseSpec(name="c"), "gaussian_mixture", n, seed=0)
    particles = target.modes[chosen] + 0.5 * draws(len(chosen), n) if chosen else torch.zeros(3, n).double()
    assert collapse.covered_modes(particles, target, within=3.0) == covered


# Smoothing


@pytest.mark.parametrize("std", [0.5, 1.0])
@pytest.mark.parametrize("frequency", [0.25, 1.0, 3.0])
def test_a_gaussian_blur_leaves_the_closed_forms_share_of_a_cosine(frequency, std):
    assert blurred_share(frequency, std) == pytest.approx(math.exp(-((std * frequency) ** 2) / 2), abs=1e-6)


def test_neighbours_lie_at_the_radius_in_directions_that_do_not_depend_on_it():
    prompt = draws(3, 5).float()
    near, far = neighbours(prompt, 0.5, 4, seed=7), neighbours(prompt, 2.0, 4, seed=7)
    assert torch.equal(near[0], prompt)
    rms = (near[1:] - prompt).square().mean(dim=(1, 2)).sqrt()
    torch.testing.assert_close(rms, torch.full((4,), 0.5))
    torch.testing.assert_close(far[1:] - prompt, 4 * (near[1:] - prompt))
    assert not torch.equal(neighbours(prompt, 0.5, 4, seed=8), near)
