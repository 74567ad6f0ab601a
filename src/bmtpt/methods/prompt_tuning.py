"""Plain prompt tuning (Lester et al. 2021): θ* = argmin NLL(D | θ), started from rows of the vocabulary.

With a prior around its start θ⁰ it is MAP without source tasks: what is left of BMTPT where nothing was learned before.

    objective(θ) = NLL(D | θ) + ‖θ − θ⁰‖² / (2σ²)                                                            [ours]
"""

from __future__ import annotations

from dataclasses import replace

import torch

from bmtpt.backbone import Backbone
from bmtpt.methods.registry import Method, Setup, register
from bmtpt.methods.target import Candidate
from bmtpt.posterior.prompts import from_vocabulary


def plain_candidates(backbone: Backbone, prompt_length: int, seed: int, count: int = 1) -> list[Candidate]:
    """Return ``count`` candidates that start from different vocabulary draws and compete on validation."""
    generator = torch.Generator().manual_seed(seed)
    rows = backbone.frequent_rows()
    draws = [from_vocabulary(rows, prompt_length, generator) for _ in range(count)]
    return [Candidate(draw, f"vocabulary draw {i}") for i, draw in enumerate(draws)]


def _candidates(setup: Setup) -> list[Candidate]:
    return plain_candidates(setup.backbone, setup.prompt_length, setup.settings.seed, setup.budget)


def anchored_candidates(setup: Setup) -> list[Candidate]:
    """Return plain candidates, each with a prior around its own start: the one σ, or the first of the grid."""
    settings, plain = setup.settings, _candidates(setup)
    if settings.prior == "none":
        return plain
    std = settings.prior_std_grid[0] if settings.prior_std == "auto" else settings.prior_std
    return [replace(each, prior="mean", prior_std=std, centre=each.start) for each in plain]


PROMPT_TUNING = register(
    Method("pt", "plain prompt tuning", "Lester et al. 2021", candidates=_candidates, column=10),
)
ANCHORED = register(
    Method(
        "anchored_pt",
        "prompt tuning with a prior",
        "ours: BMTPT without source tasks",
        candidates=anchored_candidates,
        column=12,
    ),
)
