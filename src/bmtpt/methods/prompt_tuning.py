"""Plain prompt tuning (Lester et al. 2021): θ* = argmin NLL(D | θ), started from rows of the vocabulary."""

from __future__ import annotations

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


PROMPT_TUNING = register(
    Method("pt", "plain prompt tuning", "Lester et al. 2021", candidates=_candidates, column=10),
)
