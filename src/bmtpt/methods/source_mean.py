"""Mean of source prompts: averaging in place of a posterior, the rival that BMTPT's paper argues against.

    θ⁰ = (1/K) Σ_k θ^k        θ^k: the prompt tuned on source task k alone; then plain prompt tuning

For Gaussian task posteriors the mode of their product is in general no such average (arXiv 2402.08594, appendix A;
study `gaussian`).
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from bmtpt.methods.target import Candidate


def source_mean_candidate(source_prompts: Mapping[str, Float[Tensor, "P D"]]) -> Candidate:
    """Return the start at the mean of the individually tuned source prompts: averaging in place of a posterior."""
    total = sum(source_prompts.values())
    assert isinstance(total, Tensor)
    return Candidate(total / len(source_prompts), "mean of source prompts")
