"""BMTPT's target stage (arXiv 2402.08594; docs/method.md, section 2): MAP with the source posterior as the prior.

    objective(θ) = NLL(D | θ) + ‖θ − θ̄‖² / (2σ²)                            prior = mean     [paper]
    objective(θ) = NLL(D | θ) − log (1/M) Σ_m N(θ; θ_m, σ²I)                prior = mixture  [ours]

θ starts at θ̄ [paper], at the best particle, or at every particle. `prior_std = auto` trains one candidate per σ of
the grid and one without a prior, and keeps the one that validates best: with a far-away target the winner is a weak
prior or none, so transfer never costs much.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from bmtpt.methods.target import Candidate
from bmtpt.settings import AdaptSettings


def starts(
    particles: Float[Tensor, "M P D"], train_nll: Sequence[float], settings: AdaptSettings
) -> list[tuple[str, Float[Tensor, "P D"]]]:
    """Return the named starts that the settings ask for.

    Args:
        particles: Of the source posterior.
        train_nll: NLL of each particle on the target's training rows, which decides which particle is best.
        settings: Of the target stage.
    """
    best = min(range(len(particles)), key=lambda m: train_nll[m])
    named = {
        "mean": [("mean", particles.mean(dim=0))],
        "best": [(f"particle {best}", particles[best])],
        "particles": [(f"particle {m}", particle) for m, particle in enumerate(particles)],
    }
    if settings.ensemble:
        return named["particles"]
    if settings.start != "auto":
        return named[settings.start]
    return named["mean"] if len(particles) == 1 else named["mean"] + named["best"]


def map_candidates(
    particles: Float[Tensor, "M P D"], train_nll: Sequence[float], settings: AdaptSettings
) -> list[Candidate]:
    """Return every start paired with every σ."""
    return [
        Candidate(start, name, prior="none" if std is None else settings.prior, prior_std=std)
        for name, start in starts(particles, train_nll, settings)
        for std in _stds(settings)
    ]


def _stds(settings: AdaptSettings) -> list[float | None]:
    if settings.prior == "none":
        return [None]
    if settings.prior_std == "auto":
        return [*settings.prior_std_grid, None]
    return [settings.prior_std]
