"""MPT, multitask prompt tuning (Wang et al. 2023, arXiv 2303.02861).

    source   P_k = P* ∘ (u_k v_kᵀ)      L = Σ_k [ L_k(P_k) + λ (KL_k + MSE_k) ]      u_k and v_k start at ones
             KL_k   between the next-token distributions under the teacher θ^k (tuned on source k alone) and under P_k
             MSE_k  between the model's hidden states under the two
    target   P = A ∘ (u vᵀ), A starts at P*, u and v at the means of u_k and v_k; A, u and v are trained

With λ = 0 it is plain multi-task training of P*, u_k and v_k (`task_factors.py` with one particle). The paper leaves
two things open: the hidden states are the encoder's output here, and MSE a mean over positions and widths. Every source
gives the same number of examples to a step, as in all our source stages (the paper draws the tasks of a batch). Several
targets share A (`methods/target.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.backbone.encoder_decoder.distillation import Terms, distillation_gradients
from bmtpt.backbone.encoder_decoder.engine import PassEngine
from bmtpt.methods.svgd_source import joined
from bmtpt.methods.target import Candidate
from bmtpt.methods.task_factors import FactoredSource
from bmtpt.posterior.prompts import Decomposed
from bmtpt.settings import LearnSettings, MptSettings
from bmtpt.tasks.tokens import Tokenised
from bmtpt.types import TokenBatch


class MptSource(FactoredSource):
    """The source stage: one shared prompt, a factor per source, and teachers to imitate.

    Args:
        engine, train, held_back, settings: As for `SvgdSource`.
        start: Where P* starts.
        teachers: θ^k by source task.
        distillation: λ and the temperature.
    """

    engine: PassEngine

    def __init__(
        self,
        engine: PassEngine,
        start: Float[Tensor, "P D"],
        teachers: Mapping[str, Float[Tensor, "P D"]],
        train: Mapping[str, Tokenised],
        held_back: Mapping[str, Tokenised],
        settings: LearnSettings,
        distillation: MptSettings,
    ) -> None:
        super().__init__(engine, start[None], train, held_back, settings)
        self.teachers = teachers
        self.distillation = distillation
        self.terms: Terms | None = None

    def _pull(
        self, own: Float[Tensor, "1 N P D"], batches: Mapping[str, TokenBatch]
    ) -> tuple[Float[Tensor, "1 N"], Float[Tensor, "1 N P D"]]:
        strength = self.distillation.distillation_weight
        if not strength:
            return super()._pull(own, batches)
        teachers = torch.stack([self.teachers[name] for name, batch in batches.items() for _ in range(len(batch))])
        self.terms, gradient = distillation_gradients(
            self.engine,
            own[0],
            teachers,
            joined(batches),
            self._weights(batches),
            strength=strength,
            temperature=self.distillation.temperature,
        )
        return self.terms.nll[None], gradient[None]


def target_start(trained: Sequence[Tensor]) -> Decomposed:
    """Return P* and the means of u_k and v_k, given the trained tensors in the order of the groups."""
    shared, row, col = trained
    return Decomposed(shared[0], row.mean(dim=0), col.mean(dim=0))


def mpt_candidate(start: Decomposed) -> Candidate:
    """Return MPT's one start on a target."""
    return Candidate(start.full, "shared prompt of the sources", row=start.row, col=start.col)
