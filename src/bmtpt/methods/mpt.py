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
from pydantic import Field
from torch import Tensor

from bmtpt.backbone.encoder_decoder.distillation import Terms, distillation_gradients
from bmtpt.backbone.encoder_decoder.engine import PassEngine
from bmtpt.backbone.engine import Choice
from bmtpt.methods.registry import Method, Options, OwnSource, Setup, SourceSetup, register
from bmtpt.methods.svgd_source import joined
from bmtpt.methods.target import Candidate
from bmtpt.methods.task_factors import FactoredSource
from bmtpt.settings import LearnSettings, Positive
from bmtpt.tasks.tokens import Tokenised, TrainingRows
from bmtpt.types import TokenBatch


class MptOptions(Options):
    """Settings of MPT's source stage in addition to those of every source stage.

    Attributes:
        distillation_weight: λ, the weight of the distillation losses [paper: 0.9].
        temperature: Divides the logits of teacher and student before they are compared.
    """

    distillation_weight: float = Field(default=0.9, ge=0)
    temperature: Positive = 1.0


class MptSource(FactoredSource):
    """The source stage: P* from ``start``, a factor per source, and teachers θ^k by source task to imitate."""

    engine: PassEngine

    def __init__(
        self,
        engine: PassEngine,
        start: Float[Tensor, "P D"],
        teachers: Mapping[str, Float[Tensor, "P D"]],
        train: Mapping[str, TrainingRows],
        held_back: Mapping[str, Tokenised],
        settings: LearnSettings,
        distillation: MptOptions,
    ) -> None:
        super().__init__(engine, start[None], train, held_back, settings)
        self.teachers = teachers
        self.distillation = distillation
        self.terms: Terms | None = None

    def _units(self, batch: TokenBatch) -> int:
        return sum(batch.target_tokens())  # as in the authors' code, whatever `likelihood_unit` says

    def _pull(
        self,
        prompts: Float[Tensor, "1 N P D"],
        batches: Mapping[str, TokenBatch],
        choices: Mapping[str, Choice],
    ) -> tuple[Float[Tensor, "1 N"], Float[Tensor, "1 N P D"]]:
        strength = self.distillation.distillation_weight
        if not strength:
            return super()._pull(prompts, batches, choices)
        teachers = torch.stack([self.teachers[name] for name, batch in batches.items() for _ in range(len(batch))])
        self.terms, gradient = distillation_gradients(
            self.engine,
            prompts[0],
            teachers,
            joined(batches),
            self._weights(batches),
            strength=strength,
            temperature=self.distillation.temperature,
        )
        return self.terms.nll[None], gradient[None]


def mpt_source(setup: SourceSetup) -> MptSource:
    """Return MPT's source stage; its teachers are the prompts of the single sources."""
    engine = setup.backbone.engine
    assert isinstance(engine, PassEngine)  # every encoder-decoder's is
    return MptSource(engine, setup.start, setup.prompts, setup.train, setup.held_back, setup.settings, setup.options)


def target_start(trained: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return P* and the means of u_k and v_k, given the trained tensors in the order of the groups."""
    shared, row, col = trained
    return {"full": shared[0], "row": row.mean(dim=0), "col": col.mean(dim=0)}


def source_parameters(kept: Mapping[str, Tensor], sources: int) -> int:
    """Return the size of P* and of u_k and v_k for every source."""
    return kept["full"].numel() + sources * (kept["row"].numel() + kept["col"].numel())


def mpt_candidate(setup: Setup) -> list[Candidate]:
    """Return MPT's one start on a target."""
    own = setup.learned.own
    return [Candidate(own["full"], "shared prompt of the sources", row=own["row"], col=own["col"])]


MPT = register(
    Method(
        "mpt",
        "MPT",
        "Wang et al. 2023, arXiv 2303.02861",
        candidates=mpt_candidate,
        needs="source prompts",
        own_source=OwnSource(mpt_source, target_start, source_parameters),
        options=MptOptions,
        together=True,
        backbones="encoder-decoder",
        column=24,
    )
)
