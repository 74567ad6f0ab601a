"""Kernels between soft prompts: values and closed-form gradients, bandwidths, and what counts as one point.

Every kernel here has a gradient of one form, which is all that SVGD needs:

    ∇_{θ_j} k(θ_j, θ_i) = w_ji (θ_i − o_j)     o_j = θ_j for a kernel of the distance,
                                              o_j = c, the particles' mean, for one of the inner product

Axes in addition to those of `bmtpt.types`: G groups are compared separately, each point has F numbers. Scope "prompt"
has G = 1 and F = P·D (the paper), scope "row" has G = P and F = D.

Distances and inner products are sums over differences, one particle against all at a time: |x|² + |y|² − 2xy
cancels at prompt scale in float32 (10 where 7.7 is right, −1 where 0.08 is), and elementwise products, unlike
matrix products, keep their precision under TF32 and autocast. No [M, M, P, D] tensor is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.errors import SettingsError, nearest
from bmtpt.types import KernelName, KernelScope

Bandwidth = float | Literal["median"]


class Pairs(NamedTuple):
    """A kernel on M particles, before it is evaluated at a pair.

    Attributes:
        value: k(θ_j, θ_i) at [g, j, i].
        weight: w_ji at [g, j, i], in 1 / (embedding units)².
        origin: o_j at [g, j], in embedding units.
    """

    value: Float[Tensor, "G M M"]
    weight: Float[Tensor, "G M M"]
    origin: Float[Tensor, "G M F"]


class Kernel(NamedTuple):
    """A kernel evaluated on M particles.

    Attributes:
        points: The particles as G × M points of F numbers (see `as_points`).
        bandwidth: h of each group, in (embedding units)².
        pairs: Values and gradient weights of every pair.
    """

    points: Float[Tensor, "G M F"]
    bandwidth: Float[Tensor, " G"]
    pairs: Pairs

    def gradient(self, i: int) -> Float[Tensor, "G M F"]:
        """∇_{θ_j} k(θ_j, θ_i) for every j and one i."""
        return self.pairs.weight[:, :, i, None] * (self.points[:, i, None] - self.pairs.origin)


def rbf(points: Float[Tensor, "G M F"], h: Float[Tensor, " G"]) -> Pairs:
    """k(x, y) = exp(−‖x−y‖²/h), the paper's kernel;  w = 2k/h.

    With the median bandwidth k depends on distances relative to the typical one, whatever the dimension; the
    repulsion 2‖x−y‖k/h still falls as 1/√F because distances grow as √F.
    """
    s, h = squared_distances(points), h[:, None, None]
    k = torch.exp(-s / h)
    return Pairs(k, 2 * k / h, points)


def imq(points: Float[Tensor, "G M F"], h: Float[Tensor, " G"]) -> Pairs:
    """Inverse multiquadric k(x, y) = (1 + ‖x−y‖²/h)^(−1/2);  w = (1 + ‖x−y‖²/h)^(−3/2)/h.

    Heavier tails than `rbf`, so far particles still feel each other (Gorham and Mackey 2017).
    """
    s, h = squared_distances(points), h[:, None, None]
    b = 1 + s / h
    return Pairs(b**-0.5, b**-1.5 / h, points)


def laplacian(points: Float[Tensor, "G M F"], h: Float[Tensor, " G"]) -> Pairs:
    """k(x, y) = exp(−‖x−y‖/√h);  w = k/(‖x−y‖√h), and 0 at x = y, where the gradient does not exist.

    √h makes the length scale the typical distance, as for `rbf`. The pull apart does not vanish as particles
    meet.
    """
    r, h = squared_distances(points).sqrt(), h[:, None, None]
    k = torch.exp(-r / h.sqrt())
    w = torch.where(r > 0, k / (r * h.sqrt()), torch.zeros_like(r))
    return Pairs(k, w, points)


def linear(points: Float[Tensor, "G M F"], h: Float[Tensor, " G"]) -> Pairs:
    """k(x, y) = 1 + (x−c)·(y−c)/h with c the particles' mean;  w = 1/h, o = c.

    The origin is the mean, held fixed like h during a step, so that a single particle has k = 1 and ∇k = 0
    and moves by plain gradient descent. On an isotropic Gaussian the fixed point has the exact mean and, in the
    span of the particles, the exact covariance (Liu and Wang 2018, "SVGD as moment matching"). The median h
    grows with F as the inner products do. k is unbounded, so particles far from the mean need small steps.
    """
    c, dot = _centred_dots(points)
    h = h[:, None, None]
    return Pairs(1 + dot / h, torch.ones_like(dot) / h, c)


def polynomial(points: Float[Tensor, "G M F"], h: Float[Tensor, " G"]) -> Pairs:
    """k(x, y) = (1 + (x−c)·(y−c)/h)², c as in `linear`;  w = 2(1 + (x−c)·(y−c)/h)/h, o = c.

    It matches more moments than `linear` and grows with the fourth power of the distance from the mean, so it
    needs smaller steps still.
    """
    c, dot = _centred_dots(points)
    h = h[:, None, None]
    b = 1 + dot / h
    return Pairs(b.square(), 2 * b / h, c)


KERNELS: dict[str, Callable[[Tensor, Tensor], Pairs]] = {
    "rbf": rbf,
    "imq": imq,
    "laplacian": laplacian,
    "linear": linear,
    "polynomial": polynomial,
}


def evaluate_kernel(
    particles: Float[Tensor, "M P D"],
    kernel: KernelName = "rbf",
    bandwidth: Bandwidth = "median",
    scope: KernelScope = "prompt",
) -> Kernel:
    """Evaluate a kernel on every pair of particles.

    Args:
        particles: M prompts, float32 or float64; the results have their dtype.
        kernel: One of rbf, imq, laplacian, linear, polynomial; equations in the functions of these names.
        bandwidth: "median" (see `median_bandwidth`) or a fixed h > 0 in (embedding units)².
        scope: "prompt" is one kernel over P·D numbers; "row" is one per prompt row over D numbers each, which
            counters the fall of the repulsion with dimension.

    Raises:
        SettingsError: An unknown kernel or scope, or a bandwidth that is not positive and finite.
    """
    if kernel not in KERNELS:
        raise SettingsError(f"unknown kernel '{kernel}': {nearest(kernel, KERNELS)}")
    points = as_points(particles, scope)
    h = _bandwidths(points, bandwidth)
    return Kernel(points, h, KERNELS[kernel](points, h))


def as_points(particles: Float[Tensor, "M P D"], scope: KernelScope) -> Float[Tensor, "G M F"]:
    """View particles as the points a kernel compares: [1, M, P·D] or [P, M, D].

    Raises:
        SettingsError: An unknown scope.
    """
    if scope not in get_args(KernelScope):
        raise SettingsError(f"unknown kernel scope '{scope}': {nearest(scope, get_args(KernelScope))}")
    return particles.flatten(1).unsqueeze(0) if scope == "prompt" else particles.transpose(0, 1)


def as_prompts(points: Float[Tensor, "G M F"], prompt_length: int) -> Float[Tensor, "M P D"]:
    """Undo `as_points`."""
    M = points.shape[1]
    return points.transpose(0, 1).reshape(M, prompt_length, -1)  # G·F = P·D, rows in order for both scopes


def squared_distances(points: Float[Tensor, "G M F"]) -> Float[Tensor, "G M M"]:
    """‖x_j − x_i‖² from differences: symmetric, exactly 0 for identical points, never negative."""
    M = points.shape[1]
    return torch.stack([(points - points[:, i, None]).square().sum(-1) for i in range(M)], dim=-1)


def median_bandwidth(squared: Float[Tensor, "G M M"]) -> Float[Tensor, " G"]:
    """h = median_{i<j} ‖x_i − x_j‖² / log(M + 1), one per group, in (embedding units)².

    Strict pairs only; for an even number of pairs the median is the mean of the two middle ones. h is always
    positive: if the median is 0 (most particles identical) the mean over pairs takes its place, and if that
    is 0 too (all identical, or M = 1) h is 1, because nothing is left that has a scale.
    """
    M = squared.shape[-1]
    if M == 1:
        return torch.ones_like(squared[:, 0, 0])
    rows, columns = torch.triu_indices(M, M, offset=1, device=squared.device)
    pairs = squared[:, rows, columns]
    median, mean = pairs.quantile(0.5, dim=-1), pairs.mean(-1)
    h = torch.where(median > 0, median, mean) / math.log(M + 1)
    smallest = math.sqrt(torch.finfo(h.dtype).tiny)  # 1/h and its square stay finite
    return torch.where(h > 0, h.clamp(min=smallest), torch.ones_like(h))


def _bandwidths(points: Tensor, bandwidth: Bandwidth) -> Tensor:
    if bandwidth == "median":
        return median_bandwidth(squared_distances(points))
    if isinstance(bandwidth, str) or not (0 < bandwidth < math.inf):
        raise SettingsError(f"bandwidth is {bandwidth!r}: give 'median' or a positive number")
    return points.new_full(points.shape[:1], bandwidth)


def _centred_dots(points: Tensor) -> tuple[Tensor, Tensor]:
    """The mean c, repeated for each particle, and (x_j − c)·(x_i − c)."""
    c = points.mean(1, keepdim=True)
    y = points - c
    dot = torch.stack([(y * y[:, i, None]).sum(-1) for i in range(y.shape[1])], dim=-1)
    return c.expand_as(points), dot
