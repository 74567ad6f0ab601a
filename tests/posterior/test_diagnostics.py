"""Diagnostics against brute force and Gaussians; warnings against histories made to show one failure each."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from bmtpt.posterior import History, diagnose, stein_discrepancy, svgd_direction, warnings
from bmtpt.posterior.diagnostics import instability_warning, mean_gap_warning, no_gain_warning, plateau_warning


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


FALLING = [3 * 0.97**step + 0.2 for step in range(100)]


def test_a_run_that_learns_gives_no_warning():
    good = History(5, FALLING, [0.3, 0.4], mean_nll=0.33)
    assert warnings(good) == []
    assert warnings(History(particles=1)) == []


def test_every_failure_of_a_history_is_told():
    flat_then_up = [1.0] * 90 + [2.0] * 10
    told = warnings(History(5, flat_then_up, [0.3, 0.4], 2.4))
    assert [sentence.split()[1] for sentence in told] == ["is", "loss", "posterior"]


def test_an_early_plateau_is_told_with_what_to_change():
    sentence = plateau_warning([3.0, 2.0, 1.5, *[1.2] * 97], particles=5)
    assert sentence is not None
    assert "More particles than 5" in sentence
    assert "'row'" in sentence


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([1.0] * 19, id="too short"),
        pytest.param([2.0] * 10 + [0.01] * 90, id="solved"),
        pytest.param(FALLING, id="falling"),
    ],
)
def test_what_is_no_plateau_is_not_called_one(losses):
    assert plateau_warning(losses, particles=5) is None


def test_an_unstable_run_is_told():
    assert "unstable" in (instability_warning(FALLING + [3.0] * 20) or "")
    assert "not a number" in (instability_warning([1.0, math.nan]) or "")
    assert "not a number" in (instability_warning([1.0, math.inf]) or "")
    assert instability_warning(FALLING) is None


def test_noise_near_zero_loss_is_not_instability():
    assert instability_warning([0.01] * 90 + [0.03] * 10) is None


def test_the_measured_gap_between_mean_and_particles_is_told_with_the_cure():
    sentence = mean_gap_warning(2.36, [0.19, 0.25, 0.30, 0.33, 0.36])
    assert sentence is not None
    assert all(cure in sentence for cure in ("'shared'", "'prompt'", "best particle", "mixture"))
    assert mean_gap_warning(math.nan, [0.2, 0.3]) is not None


def test_a_mean_as_good_as_its_particles_is_not_warned_about():
    assert mean_gap_warning(0.31, [0.28, 0.30]) is None
    assert mean_gap_warning(0.31, []) is None
    assert mean_gap_warning(None, [0.28]) is None


@pytest.mark.parametrize(("ours", "told"), [(0.5, False), (0.6, True), (0.7, True)])
def test_no_gain_over_plain_prompt_tuning_is_told(ours, told):
    assert (no_gain_warning(ours, 0.6) is not None) == told
