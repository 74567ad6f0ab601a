"""Judge a source run by what it recorded, and warn in plain words: a function per failure, a sentence or None.

This module does not import torch, so that a report of finished runs does not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean


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
LARGE_GAP = 0.5  # nats; the mean gives a label token at most 0.6 times the probability, however high the losses are


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
    """Warn if NLL(θ̄) − mean_m NLL(θ_m) exceeds 0.5 nats, or 0.1 nats and 25 % of the latter.

    Measured on FLAN-T5-small: particles at .19 to .36, their mean at 2.36 (docs/method.md, section 1).
    """
    if mean_nll is None or not particle_nll:
        return None
    own = fmean(particle_nll)
    gap = mean_nll - own
    if gap <= min(LARGE_GAP, max(GAP, GAP_SHARE * own)):  # tests for the good case, so that a NaN warns too
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
