"""Output ensemble of individual source prompts: the average of their probabilities, never of their logits.

    p(y | x) = (1/K) Σ_k p(y | [θ^k; embed(x)])        θ^k: tuned on source k alone, then on the target [ours]

Each source prompt is adapted by plain prompt tuning before its vote counts: untouched source prompts answer in their
own task's words. K prompts are trained and kept, so an ensemble trains K times the numbers of one prompt. Set
`AdaptSettings.ensemble`, which keeps every start instead of the best one.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from bmtpt.methods.target import Candidate


def ensemble_candidates(source_prompts: Mapping[str, Float[Tensor, "P D"]]) -> list[Candidate]:
    """Return one start for every source prompt."""
    return [Candidate(prompt, f"source {name}") for name, prompt in source_prompts.items()]
