"""Diagnostics against brute force and Gaussians."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from bmtpt.posterior.diagnostics import diagnose, stein_discrepancy
from bmtpt.posterior.svgd import svgd_direction


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def diagnosed(particles: Tensor, scores: Tensor, **settings: object):
    return diagnose(particles, scores, svgd_direction(particles, scores, **settings)[1])


def test_the_stein_discrepancy_agrees_with_autograd_on_every_pair():
    M, n = 4, 6
    particles, scores = draw(M, 2, 3), draw(M, 2, 3, seed=1)
    x, s = particles.flatten(1), scores.flatten(1)
    pairs = torch.pdist(x).square().sort().values
    h = (pairs[2] + pairs[3]) / 2 / math.log(M + 1)

    def k(a: Tensor, b: Tensor) -> Tensor:
        return (1 + (a - b).square().sum() / h) ** -0.5

    total = torch.zeros((), dtype=torch.float64)
    for i in range(M):
        for j in range(M):
            if i != j:
                gradients = torch.autograd.functional.jacobian(k, (x[i], x[j]))
                hessian = torch.autograd.functional.hessian(k, (x[i], x[j]))
                total += k(x[i], x[j]) * s[i] @ s[j] + s[j] @ gradients[0] + s[i] @ gradients[1]
                total += hessian[0][1].reshape(n, n).trace()
    expected = (total / (M * (M - 1))).item()
    assert stein_discrepancy(particles, scores) == pytest.approx(expected, rel=1e-10)


def test_the_stein_discrepancy_is_near_zero_for_exact_samples_only():
    samples = draw(300, 1, 3)
    exact = stein_discrepancy(samples, -samples)
    wrong_mean = stein_discrepancy(samples + 1, -(samples + 1))
    too_narrow = stein_discrepancy(0.5 * samples, -0.5 * samples)
    assert abs(exact) < 0.02
    assert wrong_mean > 0.5
    assert too_narrow > 0.1


def test_the_stein_discrepancy_falls_as_svgd_converges():
    particles = 3 + draw(10, 1, 4)
    before = stein_discrepancy(particles, -particles)
    for _ in range(300):
        particles = particles + 0.5 * svgd_direction(particles, -particles)[0]
    assert stein_discrepancy(particles, -particles) < 0.05 * before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scope", ["prompt", "row"])
@pytest.mark.parametrize("M", [1, 4])
def test_diagnostics_survive_json(M, scope, dtype):
    found = diagnosed(draw(M, 2, 3, dtype=dtype), draw(M, 2, 3, seed=1, dtype=dtype), scope=scope)
    assert json.loads(json.dumps(found._asdict(), allow_nan=False)) == found._asdict()
    assert len(found.kernel) == len(found.distances) == len(found.particle_rms) == M


def test_spread_and_norms_are_those_of_the_particles():
    particles = 2 + draw(4, 2, 3)
    found = diagnosed(particles, draw(4, 2, 3, seed=1))
    assert found.mean_rms == pytest.approx(particles.mean(0).norm().item() / math.sqrt(6), rel=1e-12)
    assert found.particle_rms[2] == pytest.approx(particles[2].norm().item() / math.sqrt(6), rel=1e-12)
    mean_square = sum(rms**2 for rms in found.particle_rms) / 4
    assert found.spread**2 + found.mean_rms**2 == pytest.approx(mean_square, rel=1e-12)
    assert found.distances[0][3] == pytest.approx((particles[0] - particles[3]).norm().item(), rel=1e-12)


def test_one_particle_has_no_spread_no_repulsion_and_no_discrepancy():
    found = diagnosed(draw(1, 2, 3), draw(1, 2, 3, seed=1))
    assert (found.spread, found.repulsion_to_drive, found.stein_discrepancy) == (0.0, 0.0, None)


def test_the_ratio_of_repulsion_to_drive_is_one_at_the_fixed_point():
    particles = draw(4, 1, 8)
    for _ in range(200):
        particles = particles + svgd_direction(particles, -particles)[0]
    assert diagnosed(particles, -particles).repulsion_to_drive == pytest.approx(1.0, abs=1e-6)


def test_without_a_drive_the_ratio_is_none():
    assert diagnosed(draw(3, 1, 4), torch.zeros(3, 1, 4, dtype=torch.float64)).repulsion_to_drive is None


@pytest.mark.parametrize(("bandwidth", "rank"), [(1e-6, 5.0), (1e9, 1.0)])
def test_the_kernel_rank_counts_the_particles_that_act_as_different(bandwidth, rank):
    found = diagnosed(draw(5, 1, 4), draw(5, 1, 4, seed=1), bandwidth=bandwidth)
    assert found.kernel_rank == pytest.approx(rank, abs=1e-6)
