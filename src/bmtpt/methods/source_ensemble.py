"""Output ensemble of individual source prompts: the average of their probabilities, never of their logits.

    p(y | x) = (1/K) Σ_k p(y | [θ^k; embed(x)])        θ^k: tuned on source k alone, then on the target [ours]

Each source prompt is adapted by plain prompt tuning before its vote counts: untouched source prompts answer in their
own task's words. K prompts are trained and kept, so an ensemble trains K times the numbers of one prompt
(`AdaptSettings.ensemble` keeps every start instead of the best one). Free answers cannot be averaged.
"""

from __future__ import annotations

from bmtpt.methods.registry import Method, Setup, register
from bmtpt.methods.target import Candidate


def ensemble_candidates(setup: Setup) -> list[Candidate]:
    """Return one start for every source prompt."""
    return [Candidate(prompt, f"source {name}") for name, prompt in setup.learned.prompts.items()]


SOURCE_ENSEMBLE = register(
    Method(
        "source_ensemble",
        "ensemble of source prompts",
        "ours",
        candidates=ensemble_candidates,
        needs="source prompts",
        adjusted=lambda settings, _: settings.model_copy(update={"ensemble": True}),
        label_words_only=True,
        column=22,
    )
)
