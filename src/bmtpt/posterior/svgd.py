"""Stein variational gradient descent (Liu and Wang 2016) on soft prompts: docs/method.md, section 1.

    φ(θ_i) = (1/M) Σ_j [ k(θ_j, θ_i)·score(θ_j) + ∇_{θ_j} k(θ_j, θ_i) ]
    θ_i   ← θ_i + ε φ(θ_i)                        (hand −φ to a torch optimiser as the gradient)

The first term drives particles up the log posterior, the second pushes them apart.
"""

from __future__ import annotations

import math
from typing import NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.errors import SettingsError, nearest
from bmtpt.posterior.kernels import Bandwidth, Kernel, as_points, as_prompts, evaluate_kernel
from bmtpt.types import Annealing, KernelName, KernelScope

CYCLES = 4


class SvgdInfo(NamedTuple):
    """What one direction was made of, for diagnosis.

    Attributes:
        kernel: k(θ_j, θ_i) at [g, j, i]; G = 1 for scope "prompt", P for "row".
        bandwidth: h of each group, in (embedding units)².
        drive_norm: Norm of each particle's driving term, score scale included.
        repulsion_norm: Norm of each particle's repulsive term, the factor `repulsion` included.
    """

    kernel: Float[Tensor, "G M M"]
    bandwidth: Float[Tensor, " G"]
    drive_norm: Float[Tensor, " M"]
    repulsion_norm: Float[Tensor, " M"]


@torch.no_grad()
def svgd_direction(
    particles: Float[Tensor, "M P D"],
    scores: Float[Tensor, "M P D"],
    *,
    kernel: KernelName = "rbf",
    bandwidth: Bandwidth = "median",
    scope: KernelScope = "prompt",
    repulsion: float = 1.0,
    score_scale: float = 1.0,
) -> tuple[Float[Tensor, "M P D"], SvgdInfo]:
    """Return φ for every particle, and what it was made of.

        φ(θ_i) = (1/M) Σ_j [ k(θ_j, θ_i)·score_scale·score(θ_j) + repulsion·∇_{θ_j} k(θ_j, θ_i) ]

    The bandwidth is that of these particles (never one step old) and is held fixed in ∇k. For M = 1, φ is the
    scaled score bit for bit with every kernel: k = 1 and ∇k = 0.

    The driving term of single pairs cannot be damped, on purpose. With the median bandwidth k = 1/(M + 1)
    between the equally distant particles of a fixed point on N(μ, s²I), so scaling the i = j term by c leaves
    the drive −(c − 1/(M + 1))(θ_i − μ)/(M s²), which points *away* from the mode for c < 1/(M + 1): the usual
    choice min(1, M/dimension) diverges. `repulsion` and `score_scale` have no such limit.

    Args:
        particles: θ, float32 or float64.
        scores: ∇ log p at each particle, same dtype; for a loss L it is −∇L.
        kernel: See `bmtpt.posterior.kernels`.
        bandwidth: "median" or a fixed h > 0 in (embedding units)².
        scope: "prompt" (the paper) or "row".
        repulsion: Factor ≥ 0 on ∇k. 1 is SVGD; any other value changes the target distribution: r makes it
            p^(1/r), and 0 sends every particle to a mode.
        score_scale: Factor ≥ 0 on the score: likelihood scale times `annealing`. A constant a makes p^a the
            target, so repulsion 2 and score_scale 1/2 are the same up to the step size.

    Raises:
        SettingsError: An unknown kernel or scope, or a factor or bandwidth out of range.
    """
    _check_factor("repulsion", repulsion)
    _check_factor("score_scale", score_scale)
    k = evaluate_kernel(particles, kernel, bandwidth, scope)
    drive = _drive(k, as_points(scores, scope) * score_scale)
    repulse = _repulse(k) * repulsion
    M, P, _ = particles.shape
    phi = as_prompts((drive + repulse) / M, P)
    info = SvgdInfo(k.pairs.value, k.bandwidth, _norm(drive) / M, _norm(repulse) / M)
    return phi, info


def annealing(step: int, steps: int, kind: Annealing = "none") -> float:
    """Return the factor γ in (0, 1] on the score at a step counted from 0, of `steps` in all.

    Small γ lets the repulsion spread the particles over several modes before they settle (D'Angelo and
    Fortuin 2021, "Annealed SVGD"). "linear" rises to 1 over the first half. "cyclic" is their cyclical schedule
    with power 1, γ = mod(t, T/C)/(T/C) with C = 4 cycles, but holds the last cycle at 1 [ours]: both schedules
    end with a stretch at the distribution that is wanted.

    >>> [annealing(step, 8, "linear") for step in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    >>> [annealing(step, 8, "cyclic") for step in range(8)]
    [0.5, 1.0, 0.5, 1.0, 0.5, 1.0, 1.0, 1.0]

    Raises:
        SettingsError: An unknown kind.
    """
    assert 0 <= step < steps
    done = step + 1
    if kind == "none":
        return 1.0
    if kind == "linear":
        return min(1.0, 2 * done / steps)
    if kind == "cyclic":
        into_cycle = done * CYCLES % steps  # integers, so that a cycle ends exactly at 1
        last = done * CYCLES > (CYCLES - 1) * steps
        return 1.0 if last or into_cycle == 0 else into_cycle / steps
    raise SettingsError(f"unknown annealing '{kind}': {nearest(kind, get_args(Annealing))}")


def _drive(k: Kernel, score: Tensor) -> Tensor:
    """Σ_j k(θ_j, θ_i)·score(θ_j) as [G, M, F]."""
    return torch.bmm(k.pairs.value.mT, score)


def _repulse(k: Kernel) -> Tensor:
    """Σ_j ∇_{θ_j} k(θ_j, θ_i) = Σ_j w_ji (θ_i − o_j) as [G, M, F], taken apart into θ_i Σ_j w_ji − Σ_j w_ji o_j.

    Both are taken from the particles' mean, so that the difference keeps its digits wherever the particles are.
    """
    w, centre = k.pairs.weight, k.points.mean(1, keepdim=True)
    return w.sum(1)[..., None] * (k.points - centre) - torch.bmm(w.mT, k.pairs.origin - centre)


def _norm(points: Tensor) -> Tensor:
    """Norm of each particle's [G, F] numbers, as [M]."""
    return points.square().sum((0, 2)).sqrt()


def _check_factor(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise SettingsError(f"{name} is {value}: give a finite number of at least 0 (1 is SVGD)")
