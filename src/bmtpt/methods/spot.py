"""SPoT (Vu et al. 2022): plain prompt tuning that starts from the best single source prompt.

    θ⁰ = argmin_k NLL(D_validation | θ^k)        θ^k: the prompt tuned on source task k alone

The source is chosen by validation loss before any tuning, which needs no measure of similarity.
"""

from __future__ import annotations

import torch

from bmtpt.methods.registry import Method, Setup, register
from bmtpt.methods.target import Candidate


def spot_candidates(setup: Setup) -> list[Candidate]:
    """Return starts at the ``budget`` source prompts with the lowest validation NLL on the target (SPoT: one)."""
    prompts = setup.learned.prompts
    (target,) = setup.rows.values()
    rows = target.select if len(target.select) else target.train  # nothing is held back without selection
    losses = setup.engine.losses(torch.stack(list(prompts.values())), rows.batch).mean(dim=1)
    ranked = sorted(zip(prompts, losses.tolist(), strict=True), key=lambda pair: pair[1])
    return [Candidate(prompts[name], f"source {name}") for name, _ in ranked[: setup.budget]]


SPOT = register(
    Method("spot", "SPoT", "Vu et al. 2022", candidates=spot_candidates, needs="source prompts", column=20),
)
