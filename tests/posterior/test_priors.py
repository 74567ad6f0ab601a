"""The penalties are −log p(θ) up to a constant, checked against densities written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bmtpt.posterior.priors import gaussian_penalty, mixture_penalty

R, M, P, D = 4, 3, 2, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


PROMPTS, PARTICLES = normal(R, P, D), normal(M, P, D, seed=1)
STDS = torch.tensor([0.3, 1.0, 2.5, 7.0], dtype=torch.float64)


def log_density(prompt: Tensor, mean: Tensor, std: float) -> float:
    """Log of N(mean, std² I), number by number."""
    pairs = zip(prompt.flatten().tolist(), mean.flatten().tolist(), strict=True)
    return sum(-0.5 * ((x - m) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi)) for x, m in pairs)


def normaliser(std: float) -> float:
    return -P * D * math.log(std * math.sqrt(2 * math.pi))


def test_the_gaussian_penalty_is_minus_the_log_density_without_its_constant():
    found = gaussian_penalty(PROMPTS, PARTICLES[0], STDS)
    for r in range(R):
        std = STDS[r].item()
        assert found[r].item() == pytest.approx(normaliser(std) - log_density(PROMPTS[r], PARTICLES[0], std), rel=1e-10)


def test_the_mixture_penalty_is_minus_the_log_of_the_mean_density():
    found = mixture_penalty(PROMPTS, PARTICLES, STDS)
    for r in range(R):
        std = STDS[r].item()
        mean = sum(math.exp(log_density(PROMPTS[r], particle, std) - normaliser(std)) for particle in PARTICLES) / M
        assert found[r].item() == pytest.approx(-math.log(mean), rel=1e-10)


def test_a_mixture_of_one_is_the_gaussian():
    found = mixture_penalty(PROMPTS, PARTICLES[:1], STDS)
    assert torch.allclose(found, gaussian_penalty(PROMPTS, PARTICLES[0], STDS), rtol=1e-14, atol=0)


def test_the_mixture_penalty_stays_finite_far_from_every_particle():
    found = mixture_penalty(1e3 * PROMPTS, PARTICLES, torch.full((R,), 0.01, dtype=torch.float64))
    assert torch.isfinite(found).all()
    assert (found > 1e6).all()


def test_the_mixture_pulls_towards_each_particle_by_its_share():
    prompts = PROMPTS.clone().requires_grad_(True)
    mixture_penalty(prompts, PARTICLES, STDS).sum().backward()
    for r in range(R):
        std = STDS[r].item()
        log_densities = [log_density(PROMPTS[r], particle, std) for particle in PARTICLES]
        share = torch.softmax(torch.tensor(log_densities, dtype=torch.float64), dim=0)
        pull = sum(share[m] * (PROMPTS[r] - PARTICLES[m]) for m in range(M)) / std**2
        assert torch.allclose(prompts.grad[r], pull, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("penalty", "centre"), [(gaussian_penalty, PARTICLES[0]), (mixture_penalty, PARTICLES)])
def test_an_infinite_std_gives_no_penalty_and_no_gradient(penalty, centre):
    prompts = PROMPTS.clone().requires_grad_(True)
    found = penalty(prompts, centre, torch.full((R,), math.inf, dtype=torch.float64))
    found.sum().backward()
    assert torch.equal(found.detach(), torch.zeros(R, dtype=torch.float64))
    assert torch.equal(prompts.grad, torch.zeros_like(PROMPTS))
