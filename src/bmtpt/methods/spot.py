"""SPoT (Vu et al. 2022): plain prompt tuning that starts from the best single source prompt.

    θ⁰ = argmin_k NLL(D_validation | θ^k)        θ^k: the prompt tuned on source task k alone

The source is chosen by validation loss before any tuning, which needs no measure of similarity.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from bmtpt.methods.target import Candidate


def spot_candidates(
    source_prompts: Mapping[str, Float[Tensor, "P D"]], validation_nll: Mapping[str, float], count: int = 1
) -> list[Candidate]:
    """Return starts at the ``count`` source prompts with the lowest validation NLL on the target (SPoT: one)."""
    ranked = sorted(source_prompts, key=lambda name: validation_nll[name])
    return [Candidate(source_prompts[name], f"source {name}") for name in ranked[:count]]
