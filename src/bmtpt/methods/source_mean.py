"""Mean of source prompts: averaging in place of a posterior, which BMTPT's paper argues against.

    θ⁰ = (1/K) Σ_k θ^k        θ^k: the prompt tuned on source task k alone; then plain prompt tuning

For Gaussian task posteriors the mode of their product is in general not such an average (arXiv 2402.08594, appendix A;
examples/gaussian_analogy.py).
"""

from __future__ import annotations

import torch

from bmtpt.methods.registry import Method, Setup, register
from bmtpt.methods.target import Candidate


def source_mean_candidate(setup: Setup) -> list[Candidate]:
    """Return the start at the mean of the individually tuned source prompts."""
    prompts = torch.stack(list(setup.learned.prompts.values()))
    return [Candidate(prompts.mean(dim=0), "mean of source prompts")]


SOURCE_MEAN = register(
    Method(
        "source_mean",
        "mean of source prompts",
        "arXiv 2402.08594, appendix A",
        candidates=source_mean_candidate,
        needs="source prompts",
        column=21,
    )
)
