"""Kernels against their equations written per pair, with autograd as the truth for gradients."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from bmtpt.errors import SettingsError
from bmtpt.posterior.kernels import as_points, as_prompts, evaluate_kernel, median_bandwidth, squared_distances

# k(x, y) at fixed h and centre c, as in the docstrings.
PAIR_KERNELS = {
    "rbf": lambda x, y, h, c: torch.exp(-(x - y).square().sum() / h),
    "imq": lambda x, y, h, c: (1 + (x - y).square().sum() / h) ** -0.5,
    "laplacian": lambda x, y, h, c: torch.exp(-(x - y).norm() / h**0.5),
    "linear": lambda x, y, h, c: 1 + (x - c) @ (y - c) / h,
    "polynomial": lambda x, y, h, c: (1 + (x - c) @ (y - c) / h) ** 2,
}
ALL = sorted(PAIR_KERNELS)
REFUSED = (SettingsError, TypeCheckError)  # the second if jaxtyping's import hook is on


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("bandwidth", ["median", 3.5])
@pytest.mark.parametrize("scope", ["prompt", "row"])
@pytest.mark.parametrize("name", ALL)
def test_every_kernel_and_its_gradient_agree_with_autograd(name, scope, bandwidth):
    kernel = evaluate_kernel(draw(4, 3, 5), name, bandwidth, scope)
    for g, points in enumerate(kernel.points):
        h, c = kernel.bandwidth[g], points.mean(0)
        for i, y in enumerate(points):
            for j, x in enumerate(points):
                x = x.clone().requires_grad_()
                value = PAIR_KERNELS[name](x, y, h, c)
                torch.testing.assert_close(kernel.pairs.value[g, j, i], value.detach(), rtol=1e-12, atol=1e-12)
                if i == j and name == "laplacian":
                    continue  # not differentiable there: the next test
                (gradient,) = torch.autograd.grad(value, x)
                torch.testing.assert_close(kernel.gradient(i)[g, j], gradient, rtol=1e-10, atol=1e-12)


def test_the_laplacian_gradient_between_identical_particles_is_zero():
    kernel = evaluate_kernel(draw(1, 2, 3).repeat(3, 1, 1), "laplacian")
    assert torch.equal(kernel.gradient(0), torch.zeros(1, 3, 6, dtype=torch.float64))


@pytest.mark.parametrize("pairs", [[3.0, 1.0, 8.0], [8.0, 3.0, 1.0]])
def test_the_bandwidth_is_the_median_over_strict_pairs(pairs):
    squared = torch.zeros(1, 3, 3, dtype=torch.float64)
    for (i, j), value in zip([(0, 1), (0, 2), (1, 2)], pairs, strict=True):
        squared[0, i, j] = squared[0, j, i] = value
    assert median_bandwidth(squared).item() == pytest.approx(3.0 / math.log(4), rel=1e-14)


def test_where_most_particles_are_identical_the_mean_over_pairs_sets_the_scale():
    points = torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0], dtype=torch.float64).reshape(1, 5, 1)
    h = median_bandwidth(squared_distances(points))
    assert h.item() == pytest.approx(4 * 9 / 10 / math.log(6), rel=1e-14)


def test_an_even_number_of_pairs_takes_the_mean_of_the_two_middle_ones():
    line = torch.tensor([0.0, 1.0, 3.0, 10.0], dtype=torch.float64)  # squares 1 4 9 | 49 81 100
    h = median_bandwidth(squared_distances(line.reshape(1, 4, 1)))
    assert h.item() == pytest.approx((9 + 49) / 2 / math.log(5), rel=1e-14)


def test_scope_row_is_the_prompt_kernel_of_each_row_alone():
    particles = draw(4, 3, 5)
    rows = evaluate_kernel(particles, "rbf", "median", "row")
    for p in range(3):
        alone = evaluate_kernel(particles[:, p : p + 1], "rbf", "median", "prompt")
        assert torch.equal(rows.pairs.value[p], alone.pairs.value[0])
        assert torch.equal(rows.bandwidth[p], alone.bandwidth[0])


@pytest.mark.parametrize("scope", ["prompt", "row"])
def test_points_turn_back_into_the_same_prompts(scope):
    particles = draw(4, 3, 5)
    assert torch.equal(as_prompts(as_points(particles, scope), 3), particles)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("particles", ["one", "all identical", "most identical", "nearly identical", "closer"])
@pytest.mark.parametrize("scope", ["prompt", "row"])
@pytest.mark.parametrize("name", ALL)
def test_degenerate_particles_give_finite_kernels_and_a_positive_bandwidth(name, scope, particles, dtype):
    x = draw(5, 2, 3, dtype=dtype)
    x = {
        "one": x[:1],
        "all identical": x[:1].repeat(5, 1, 1),
        "most identical": torch.cat([x[:1].repeat(4, 1, 1), x[4:]]),
        "nearly identical": x * 0.01 * torch.finfo(dtype).tiny ** 0.5,  # squares are subnormal, 1/h overflows
        "closer": x * torch.finfo(dtype).tiny ** 0.75,  # squares underflow to 0
    }[particles]
    kernel = evaluate_kernel(x, name, "median", scope)
    assert (kernel.bandwidth > 0).all()
    assert kernel.bandwidth.isfinite().all()
    assert kernel.pairs.value.isfinite().all()
    assert all(kernel.gradient(i).isfinite().all() for i in range(len(x)))


def test_distances_are_right_in_float32_where_the_expanded_square_is_not():
    start = 10 * draw(1, 76_800, seed=1)
    points = torch.cat([start, start + 0.01 * draw(1, 76_800, seed=2), start + 0.001 * draw(1, 76_800, seed=3)])
    points = points.float()  # rms 10 as in real prompts; squared distances about 7.7 and 0.077
    exact = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    ours = squared_distances(points[None])[0].double()
    norms = points.square().sum(-1)
    expanded = (norms[:, None] + norms - 2 * points @ points.T).double()
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=0)
    assert ((expanded - exact).abs() > 0.5 * exact).any()


def test_a_wrong_setting_is_a_sentence_with_a_hint():
    particles = draw(2, 1, 3)
    with pytest.raises(REFUSED, match="'rbf'"):
        evaluate_kernel(particles, "rbff")
    with pytest.raises(REFUSED, match="'row'"):
        evaluate_kernel(particles, scope="rows")
    with pytest.raises(REFUSED, match="'median'"):
        evaluate_kernel(particles, bandwidth="mean")
    for bandwidth in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(SettingsError, match="positive number"):
            evaluate_kernel(particles, bandwidth=bandwidth)
