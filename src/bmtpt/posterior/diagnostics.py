"""Measure how well the particles represent a posterior at one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.posterior.kernels import as_points, median_bandwidth, squared_distances
from bmtpt.posterior.svgd import SvgdInfo


class Diagnostics(NamedTuple):
    """The state of the particles at one step, as plain numbers for JSON.

    "rms" is the root mean square over a prompt's P·D numbers, in embedding units; a norm is rms·√(P·D). The
    mean of particle_rms² is spread² + mean_rms².

    Attributes:
        distances: ‖θ_j − θ_i‖ over whole prompts, M × M.
        bandwidth: h, averaged over rows for scope "row", in (embedding units)².
        kernel: k(θ_j, θ_i), averaged over rows for scope "row", M × M.
        kernel_rank: (Σλ)²/Σλ² of that matrix: about how many particles act as different ones, 1 to M.
        repulsion_to_drive: Ratio of the norms of the two terms of φ, all particles together; None if there is
            no drive.
        spread: rms over particles and numbers of θ_m − θ̄.
        mean_rms: rms of θ̄.
        particle_rms: rms of each θ_m.
        stein_discrepancy: See `stein_discrepancy`; None for one particle.
    """

    distances: list[list[float]]
    bandwidth: float
    kernel: list[list[float]]
    kernel_rank: float
    repulsion_to_drive: float | None
    spread: float
    mean_rms: float
    particle_rms: list[float]
    stein_discrepancy: float | None


@torch.no_grad()
def diagnose(particles: Float[Tensor, "M P D"], scores: Float[Tensor, "M P D"], info: SvgdInfo) -> Diagnostics:
    """Measure the particles that `svgd_direction` has just been given.

    Args:
        particles: θ, float32 or float64.
        scores: ∇ log p of the distribution they are to sample: likelihood scale included, annealing not.
        info: What `svgd_direction` returned for them.
    """
    mean, K = particles.mean(0), info.kernel.mean(0)
    drive, repulsion = _norm(info.drive_norm), _norm(info.repulsion_norm)
    return Diagnostics(
        distances=squared_distances(as_points(particles, "prompt"))[0].sqrt().tolist(),
        bandwidth=info.bandwidth.mean().item(),
        kernel=K.tolist(),
        kernel_rank=(K.trace().square() / K.square().sum()).item(),  # K is symmetric: Σλ² = ‖K‖²
        repulsion_to_drive=repulsion / drive if drive > 0 else None,
        spread=_rms(particles - mean),
        mean_rms=_rms(mean),
        particle_rms=[_rms(particle) for particle in particles],
        stein_discrepancy=stein_discrepancy(particles, scores) if len(particles) > 1 else None,
    )


@torch.no_grad()
def stein_discrepancy(particles: Float[Tensor, "M P D"], scores: Float[Tensor, "M P D"]) -> float:
    """Squared kernelised Stein discrepancy, U-statistic (Liu, Lee and Jordan 2016), for M ≥ 2.

        1/(M(M−1)) Σ_{i≠j} [ k s_i·s_j + s_i·∇_{θ_j}k + s_j·∇_{θ_i}k + tr ∇_{θ_i}∇_{θ_j}k ]

    k is always the inverse multiquadric (1 + ‖θ_i−θ_j‖²/h)^(−1/2) over whole prompts with the median
    bandwidth, whatever kernel SVGD uses: it detects non-convergence where the RBF does not (Gorham and Mackey
    2017), and runs with different kernels compare. The expectation is about 0 for independent draws from the
    posterior (exactly, if h were fixed) and positive for any other distribution; a single value can be
    negative. Scores of a mini-batch add noise.
    """
    x, s = as_points(particles, "prompt"), as_points(scores, "prompt")
    _, M, F = x.shape
    D2 = squared_distances(x)[0]
    h = median_bandwidth(D2[None])
    b = 1 + D2 / h
    ss = _pairs(lambda i: s[0] * s[0, i])
    sr = _pairs(lambda i: (s[0] - s[0, i]) * (x[0] - x[0, i]))
    u = b**-0.5 * ss + b**-1.5 * (sr + F) / h - 3 * b**-2.5 * D2 / h**2
    off_diagonal = u.sum() - u.trace()
    return float(off_diagonal / (M * (M - 1)))


def _pairs(products: Callable[[int], Tensor]) -> Tensor:
    """Stack Σ_f products(i)[j, f] into [j, i]; `products` returns [M, F]."""
    first = products(0)
    return torch.stack([first.sum(-1)] + [products(i).sum(-1) for i in range(1, len(first))], dim=-1)


def _norm(values: Tensor) -> float:
    return values.square().sum().sqrt().item()


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
