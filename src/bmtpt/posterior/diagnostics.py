"""Measure how well the particles represent a posterior, and warn in plain words when they do not.

`diagnose` reads one step; the `*_warning` functions read a recorded history and return a sentence or None, so
that a run can be judged again from its log. The training loop reports when memory runs out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
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


@dataclass(frozen=True)
class History:
    """What a source run recorded. Losses are mean cross-entropies per label token, in nats.

    Attributes:
        particles: M.
        losses: Training loss, averaged over particles and tasks, in the order of the steps.
        particle_nll: Held-back loss of each particle at the end, mean over source tasks; empty if unknown.
        mean_nll: Held-back loss of the particles' mean θ̄ on the same rows.
    """

    particles: int
    losses: Sequence[float] = ()
    particle_nll: Sequence[float] = ()
    mean_nll: float | None = None


def warnings(history: History) -> list[str]:
    """Return one sentence or two for every failure that the history shows; an empty list is good news."""
    found = [
        instability_warning(history.losses),
        plateau_warning(history.losses, history.particles),
        mean_gap_warning(history.mean_nll, history.particle_nll),
    ]
    return [sentence for sentence in found if sentence is not None]


WINDOWS = 10
NO_PROGRESS = 0.02  # relative improvement that no longer counts
SOLVED = 0.05  # nats; a plateau below is a task learned, not a failure
RISE = 0.25  # relative rise over the best tenth that counts as unstable
GAP = 0.1  # nats
GAP_SHARE = 0.25  # of the particles' own loss


def plateau_warning(losses: Sequence[float], particles: int) -> str | None:
    """Warn if the last 70 % of the steps brought less than 2 % and the loss is not near 0.

    Judged on means over tenths of the run; fewer than 20 losses say nothing.
    """
    levels = _levels(losses)
    if not levels or not all(map(math.isfinite, levels)):
        return None
    early, late = min(levels[:3]), min(levels[3:])
    if late < (1 - NO_PROGRESS) * early or early < SOLVED:
        return None
    return (
        f"The loss stopped improving in the first 30 % of the steps, at {early:.3g}. "
        f"More particles than {particles}, a smaller fixed bandwidth or kernel scope 'row' may help; "
        "if this loss is good enough, use fewer steps."
    )


def instability_warning(losses: Sequence[float]) -> str | None:
    """Warn if a loss is not finite, or the last tenth lies 25 % and 0.05 nats above the best tenth."""
    if not all(map(math.isfinite, losses)):
        return "The loss became infinite or not a number. Lower the learning rate or clip the gradient."
    levels = _levels(losses)
    if not levels or levels[-1] <= max(min(levels) * (1 + RISE), min(levels) + SOLVED):
        return None
    return (
        f"Training is unstable: the loss ended at {levels[-1]:.3g} after a best of {min(levels):.3g}. "
        "Lower the learning rate, or lower the repulsion if the particles drift apart."
    )


def mean_gap_warning(mean_nll: float | None, particle_nll: Sequence[float]) -> str | None:
    """Warn if NLL(θ̄) − mean_m NLL(θ_m) exceeds 0.1 nats and 25 % of the latter.

    Measured on FLAN-T5-small: particles at .19 to .36, their mean at 2.36 (docs/method.md, section 1).
    """
    if mean_nll is None or not particle_nll:
        return None
    own = fmean(particle_nll)
    gap = mean_nll - own
    if gap <= max(GAP, GAP_SHARE * own):  # tests for the good case, so that a NaN warns too
        return None
    return (
        f"The posterior mean lies in no mode: its held-back loss is {mean_nll:.3g}, the particles' own is "
        f"{own:.3g} (gap {gap:.3g}). Train the sources with particle_init 'shared' or 'prompt', or start "
        "targets from the best particle or the mixture instead of the mean."
    )


def no_gain_warning(target_nll: float, plain_target_nll: float) -> str | None:
    """Warn if a target's held-back loss with the posterior is not below that of plain prompt tuning, for the report."""
    if target_nll < plain_target_nll:
        return None
    return (
        f"The posterior is no better than plain prompt tuning on the target ({target_nll:.3g} against "
        f"{plain_target_nll:.3g}): the sources may be too far from it. Choose closer source tasks, or "
        "widen the prior (prior_std 'auto')."
    )


def _levels(losses: Sequence[float]) -> list[float]:
    """Mean loss of each tenth of the run, or nothing for fewer than two losses a tenth."""
    if len(losses) < 2 * WINDOWS:
        return []
    edges = [i * len(losses) // WINDOWS for i in range(WINDOWS + 1)]
    return [fmean(losses[a:b]) for a, b in pairwise(edges)]


def _pairs(products: Callable[[int], Tensor]) -> Tensor:
    """Stack Σ_f products(i)[j, f] into [j, i]; `products` returns [M, F]."""
    first = products(0)
    return torch.stack([first.sum(-1)] + [products(i).sum(-1) for i in range(1, len(first))], dim=-1)


def _norm(values: Tensor) -> float:
    return values.square().sum().sqrt().item()


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
