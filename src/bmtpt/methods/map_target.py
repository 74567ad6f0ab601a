"""BMTPT's target stage (arXiv 2402.08594; docs/method.md, section 2): MAP with the source posterior as the prior.

    objective(θ) = NLL(D | θ) + ‖θ − θ̄‖² / (2σ²)                            prior = mean     [paper]
    objective(θ) = NLL(D | θ) − log (1/M) Σ_m N(θ; θ_m, σ²I)                prior = mixture  [ours]

θ starts at θ̄ [paper], at the best particle, or at every particle. `prior_std = auto` trains one candidate per σ of
the grid and one without a prior, and keeps the one that validates best: with a far-away target the winner is a weak
prior or none. `start = auto` has a vocabulary draw among its starts, so transfer never costs much. With `average`
"starts" nothing needs to be chosen: the prior is a mixture of one around θ̄ and one around a vocabulary draw, and the
MAP prompts and the untouched starts answer together [ours].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.methods.prompt_tuning import anchored_candidates
from bmtpt.methods.registry import Method, Setup, register
from bmtpt.methods.target import Candidate
from bmtpt.settings import AdaptSettings
from bmtpt.tasks.tokens import epoch_rows

JUDGED_ROWS = 256
"""Training rows of a target on which the particles are compared before the best one becomes a start."""


def starts(
    particles: Float[Tensor, "M P D"], train_nll: Sequence[float], settings: AdaptSettings
) -> list[tuple[str, Float[Tensor, "P D"]]]:
    """Return the named starts that the settings ask for; the best particle has the lowest ``train_nll``."""
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
    stds: list[float | None] = [None]
    if settings.prior != "none":
        stds = [*settings.prior_std_grid, None] if settings.prior_std == "auto" else [settings.prior_std]
    return [
        Candidate(start, name, prior="none" if std is None else settings.prior, prior_std=std)
        for name, start in starts(particles, train_nll, settings)
        for std in stds
    ]


def posterior_candidates(setup: Setup) -> list[Candidate]:
    """Return BMTPT's starts and priors; the best particle is the one with the lowest training NLL.

    With `start` "auto" a vocabulary draw competes, too, and with `average` "starts" it answers along: sources that do
    not fit then cost nothing. Its prior is around itself.
    """
    settings, learned = setup.settings, shared_candidates(setup)
    if settings.average == "starts" or (settings.start == "auto" and not settings.ensemble):
        learned += anchored_candidates(replace(setup, budget=1, prompt_length=len(learned[0].start)))
    return learned


def shared_candidates(setup: Setup) -> list[Candidate]:
    """Return what starts from the particles.

    The best one is judged on at most `JUDGED_ROWS` training rows of a target: a large target is not read M times.
    """
    particles = setup.particles
    assert particles is not None
    return map_candidates(particles, _train_nll(particles, setup), setup.settings)


def _train_nll(particles: Float[Tensor, "M P D"], setup: Setup) -> list[float]:
    """Return each particle's mean NLL over the targets; zeros where no start depends on it."""
    settings = setup.settings
    if len(particles) == 1 or settings.ensemble or settings.start in ("mean", "particles"):
        return [0.0] * len(particles)
    losses = []
    for k, each in enumerate(setup.rows.values()):
        count = min(len(each.train), JUDGED_ROWS)
        drawn = each.train.rows(epoch_rows(len(each.train), count, 0, seed=settings.seed, task=k))
        losses.append(setup.engine.losses(particles, drawn).mean(dim=1))
    return list(torch.stack(losses).mean(dim=0).tolist())


def _without_prior(settings: AdaptSettings, _: object) -> AdaptSettings:
    return settings.model_copy(update={"prior": "none"})


MULTITASK = register(
    Method(
        "multitask",
        "multi-task prompt (M = 1)",
        "arXiv 2402.08594",
        candidates=shared_candidates,
        needs="multi-task prompt",
        adjusted=_without_prior,
        column=30,
    )
)
BMTPT = register(
    Method(
        "bmtpt",
        "BMTPT",
        "arXiv 2402.08594",
        candidates=posterior_candidates,
        needs="posterior",
        together=True,
        column=31,
    )
)
BMTPT_NO_PRIOR = register(
    Method(
        "bmtpt_no_prior",
        "BMTPT without the prior",
        "ours: an ablation",
        candidates=posterior_candidates,
        needs="posterior",
        adjusted=_without_prior,
        together=True,
        column=32,
    )
)
