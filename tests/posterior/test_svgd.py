"""SVGD against closed forms on Gaussians (docs/method.md, section 1, golden facts)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor

from bmtpt.errors import SettingsError
from bmtpt.posterior.kernels import as_points, as_prompts, evaluate_kernel
from bmtpt.posterior.svgd import annealing, svgd_direction

KERNELS = ["imq", "laplacian", "linear", "polynomial", "rbf"]
REFUSED = (SettingsError, TypeCheckError)  # the second if jaxtyping's import hook is on
VARIANCE = 1.7  # s² of the Gaussian that all fixed points below are on


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(
    particles: Tensor, score: Callable[[Tensor], Tensor], step: float, steps: int = 400, **settings: object
) -> Tensor:
    """Follow φ until it is 1e-10 of the particles, or for `steps`."""
    for _ in range(steps):
        phi, _ = svgd_direction(particles, score(particles), **settings)
        particles = particles + step * phi
        if phi.norm() < 1e-10 * particles.norm():
            break
    return particles


def strict_pairs(particles: Tensor) -> Tensor:
    return torch.pdist(particles.flatten(1)).square()


def simplex_run(M: int, n: int, a: float, **settings: object) -> tuple[Tensor, Tensor]:
    """SVGD's fixed point on N(μ, s²I_n) with the score times a, from a far start; and μ."""
    mu = draw(1, n, seed=9)
    step = 0.2 * (M + 1) * VARIANCE / a
    start = 0.4 + 2 * draw(M, 1, n)
    return run(start, lambda x: (mu - x) / VARIANCE, step, score_scale=a, **settings), mu


@pytest.mark.parametrize(("M", "n", "a"), [(5, 50, 1.0), (5, 50, 0.25), (3, 7, 1.0), (10, 200, 1.0)])
def test_the_fixed_point_on_a_gaussian_is_the_golden_simplex(M, n, a):
    particles, mu = simplex_run(M, n, a)
    expected = 2 * VARIANCE * math.log(M + 1) / a
    distances = strict_pairs(particles)
    torch.testing.assert_close(distances, torch.full_like(distances, expected), rtol=1e-6, atol=0)
    torch.testing.assert_close(particles.mean(0), mu, rtol=0, atol=1e-8)
    variance = (particles - mu).square().mean().item()
    assert variance == pytest.approx(VARIANCE * (M - 1) / M * math.log(M + 1) / (a * n), rel=1e-6)


def test_dividing_the_median_by_log_m_gives_the_other_golden_distance():
    M, a = 5, 0.5
    expected = 2 * VARIANCE * M * math.log(M) / ((M - 1) * a)
    particles, _ = simplex_run(M, 50, a, bandwidth=expected / math.log(M))  # that rule's h at its fixed point
    distances = strict_pairs(particles)
    torch.testing.assert_close(distances, torch.full_like(distances, expected), rtol=1e-6, atol=0)


def test_the_linear_kernel_matches_the_variance_in_the_span_of_the_particles():
    M = 5
    particles, mu = simplex_run(M, 50, 1.0, kernel="linear")
    deviations = (particles - mu)[:, 0]
    covariance = torch.linalg.eigvalsh(deviations @ deviations.T / M)  # its non-zero part: M − 1 values
    torch.testing.assert_close(covariance[1:], torch.full_like(covariance[1:], VARIANCE), rtol=1e-6, atol=0)


@pytest.mark.parametrize("repulsion", [0.3, 4.0])
def test_a_repulsion_factor_changes_the_target_as_tempering_does(repulsion):
    particles, _ = simplex_run(5, 50, 1.0, repulsion=repulsion)
    distances = strict_pairs(particles)
    expected = 2 * VARIANCE * math.log(6) * repulsion
    torch.testing.assert_close(distances, torch.full_like(distances, expected), rtol=1e-6, atol=0)


def simplex(M: int, n: int, squared_distance: float) -> Tensor:
    """M equally distant particles, centred at 0, as [M, 1, n]."""
    corners = torch.eye(M, n, dtype=torch.float64) * math.sqrt(squared_distance / 2)
    return (corners - corners.mean(0))[:, None]


def test_repulsion_at_the_simplex_has_its_golden_size():
    M, n, D = 5, 76_800, 2 * 76_800.0  # D: pairwise squared distance of independent prompts of rms 1
    _, info = svgd_direction(simplex(M, n, D), torch.zeros(M, 1, n, dtype=torch.float64))
    expected = 2 * math.log(M + 1) / (M + 1) / math.sqrt(2 * D)
    # ‖(1/M) Σ_j ∇k‖ = 2 log(M+1)/(D (M+1)) · ‖θ_i‖ with ‖θ_i‖² = D (M−1)/(2M): the golden fact is M → ∞
    expected *= math.sqrt((M - 1) / M)
    torch.testing.assert_close(info.repulsion_norm, torch.full((M,), expected, dtype=torch.float64))
    assert 5e-4 < expected < 2e-3


def test_the_drive_at_the_simplex_shows_why_no_pair_may_be_damped():
    M, n, D = 5, 8, 3.0
    theta = simplex(M, n, D)
    phi, _ = svgd_direction(theta, -theta, repulsion=0.0)
    torch.testing.assert_close(phi, -(1 - 1 / (M + 1)) / M * theta)
    k = evaluate_kernel(theta).pairs.value[0]
    for c, inward in [(0.5 / (M + 1), False), (2 / (M + 1), True)]:
        damped = k - (1 - c) * torch.eye(M, dtype=torch.float64)
        drive = (damped @ -theta[:, 0]) / M
        assert ((drive * theta[:, 0]).sum() < 0) == inward


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_svgd_on_a_product_of_gaussians_reaches_a_mean_that_no_mixture_of_means_does(kernel):
    mu = torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    precision = torch.linalg.inv(
        torch.tensor([[[1.0, 0.8], [0.8, 1.0]], [[2.0, -0.3], [-0.3, 0.5]]], dtype=torch.float64)
    )
    product_mean = torch.linalg.solve(precision.sum(0), torch.einsum("kab,kb->a", precision, mu))

    def score(x: Tensor) -> Tensor:
        return torch.einsum("kab,kmpb->mpa", precision, mu[:, None, None] - x)

    # Symmetric about its own mean, so that the fixed point is symmetric about the product's.
    half = draw(3, 1, 2)
    particles = run(1.0 + torch.cat([half, -half]), score, step=0.3, steps=600, kernel=kernel)
    torch.testing.assert_close(particles.mean(0)[0], product_mean, rtol=0, atol=1e-6)
    edge = mu[1] - mu[0]
    share = ((product_mean - mu[0]) @ edge / edge.square().sum()).clamp(0, 1)
    assert (mu[0] + share * edge - product_mean).norm() > 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scope", ["prompt", "row"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_particle_is_gradient_descent_bit_for_bit(kernel, scope, dtype):
    start = draw(1, 4, 6).to(dtype)
    target = draw(4, 6, seed=1).to(dtype)
    ours, plain = start.clone().requires_grad_(), start[0].clone().requires_grad_()
    by_svgd, by_gradient = torch.optim.SGD([ours], lr=0.3), torch.optim.SGD([plain], lr=0.3)
    for _ in range(7):
        by_svgd.zero_grad()
        torch.cosh(ours[0] - target).sum().backward()
        ours.grad = -svgd_direction(ours, -ours.grad, kernel=kernel, scope=scope)[0]
        by_svgd.step()
        by_gradient.zero_grad()
        torch.cosh(plain - target).sum().backward()
        by_gradient.step()
    assert torch.equal(ours[0], plain)
    assert not torch.equal(plain, start[0])


@given(
    order=st.permutations(range(5)),
    kernel=st.sampled_from(KERNELS),
    scope=st.sampled_from(["prompt", "row"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_renumbering_the_particles_renumbers_phi(order, kernel, scope, seed):
    theta, score = draw(5, 2, 3, seed=seed), draw(5, 2, 3, seed=seed + 1)
    phi, _ = svgd_direction(theta, score, kernel=kernel, scope=scope)
    renumbered, _ = svgd_direction(theta[order], score[order], kernel=kernel, scope=scope)
    torch.testing.assert_close(renumbered, phi[order], rtol=1e-10, atol=1e-10)


@given(kernel=st.sampled_from(KERNELS), seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_moving_and_scaling_the_space_moves_and_scales_phi(kernel, seed, scale):
    theta, score = draw(4, 2, 3, seed=seed), draw(4, 2, 3, seed=seed + 1)
    phi, _ = svgd_direction(theta, score, kernel=kernel)
    moved, _ = svgd_direction(5 + scale * theta, score / scale, kernel=kernel)
    torch.testing.assert_close(moved, phi / scale, rtol=1e-8, atol=1e-8 / scale)


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_agrees_with_float64_at_prompt_scale(kernel):
    start = 10 * draw(1, 20, 512, seed=1)
    theta, score = start + 0.01 * draw(5, 20, 512, seed=2), 0.01 * draw(5, 20, 512, seed=3)
    theta, score = theta.float(), score.float()  # the same numbers for both
    phi, info = svgd_direction(theta, score, kernel=kernel)
    exact, _ = svgd_direction(theta.double(), score.double(), kernel=kernel)
    assert phi.dtype == info.kernel.dtype == torch.float32
    assert (phi - exact).norm() < 1e-4 * exact.norm()


@pytest.mark.parametrize("kernel", KERNELS)
def test_identical_particles_move_as_one_and_do_not_give_nan(kernel):
    theta, score = draw(1, 2, 3).repeat(4, 1, 1), draw(1, 2, 3, seed=1).repeat(4, 1, 1)
    phi, _ = svgd_direction(theta, score, kernel=kernel)
    torch.testing.assert_close(phi, score, rtol=1e-12, atol=1e-12)


def test_info_holds_the_norms_of_the_two_terms_of_phi():
    theta, score = draw(4, 2, 3), draw(4, 2, 3, seed=1)
    drive, info = svgd_direction(theta, score, scope="row", repulsion=0.0, score_scale=2.0)
    both, both_info = svgd_direction(theta, score, scope="row", repulsion=3.0, score_scale=2.0)
    torch.testing.assert_close(info.drive_norm, drive.flatten(1).norm(dim=1))
    torch.testing.assert_close(both_info.repulsion_norm, (both - drive).flatten(1).norm(dim=1))
    assert info.kernel.shape == (2, 4, 4)


@pytest.mark.parametrize("kind", ["linear", "cyclic"])
@pytest.mark.parametrize("steps", [1, 4, 7, 200])
def test_annealing_stays_above_zero_and_ends_with_a_quarter_at_one(kind, steps):
    factors = [annealing(step, steps, kind) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[steps - max(1, steps // 4) :] == [1.0] * max(1, steps // 4)


def test_cyclic_annealing_falls_back_twice_and_linear_never():
    falls = {
        kind: sum(annealing(t + 1, 200, kind) < annealing(t, 200, kind) for t in range(199))
        for kind in ("none", "linear", "cyclic")
    }
    assert falls == {"none": 0, "linear": 0, "cyclic": 2}


def test_wrong_factors_and_schedules_are_refused():
    theta = draw(2, 1, 3)
    for factor in (-0.1, math.nan, math.inf):
        with pytest.raises(SettingsError, match="repulsion"):
            svgd_direction(theta, theta, repulsion=factor)
        with pytest.raises(SettingsError, match="score_scale"):
            svgd_direction(theta, theta, score_scale=factor)
    with pytest.raises(REFUSED, match="'cyclic'"):
        annealing(0, 10, "cyclical")


def test_the_annotated_shapes_are_the_real_ones():
    checked = jaxtyped(svgd_direction.__wrapped__, typechecker=beartype)  # below its no_grad
    theta = draw(3, 2, 4)
    checked(theta, theta, scope="row")
    with pytest.raises(TypeCheckError):
        checked(theta, theta[:, :1])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scope", ["prompt", "row"])
def test_far_from_the_origin_the_direction_is_still_the_sum_over_pairs(kernel, scope):
    random = torch.Generator().manual_seed(0)
    particles = 30 + torch.randn(4, 3, 8, generator=random)  # the common offset is large against the distances
    scores = torch.randn(4, 3, 8, generator=random)
    phi, _ = svgd_direction(particles, scores, kernel=kernel, scope=scope)
    k = evaluate_kernel(particles.double(), kernel, scope=scope)
    points = as_points(scores.double(), scope)
    pairs = [k.pairs.value[:, :, i, None] * points + k.gradient(i) for i in range(4)]
    truth = as_prompts(torch.stack([each.mean(1) for each in pairs], dim=1), 3)
    torch.testing.assert_close(phi.double(), truth, rtol=1e-4, atol=1e-5)
