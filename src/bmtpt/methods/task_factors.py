"""Task information in the source stage, an open question of arXiv 2402.08594 [ours].

    score(θ_j) = −∇_{θ_j} Σ_k L_k(θ_j ∘ (u_k v_kᵀ))        u_k and v_k start at ones
    u_k, v_k   descend on (1/M) Σ_j L_k(θ_j ∘ (u_k v_kᵀ))

What only one source needs can go into its factor; the shared particles alone go into the posterior.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.backbone.engine import Choice
from bmtpt.methods.svgd_source import SvgdSource
from bmtpt.posterior.prompts import compose
from bmtpt.train.optimisers import ParameterGroup
from bmtpt.types import TokenBatch


class FactoredSource(SvgdSource):
    """`SvgdSource` with a factor of rank one per source task, shared by the particles."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        K, (_, P, D) = len(self.train), self.particles.shape
        self.row = self.particles.new_ones(K, P).requires_grad_(True)
        self.col = self.particles.new_ones(K, D).requires_grad_(True)

    def groups(self) -> list[ParameterGroup]:
        factors = ParameterGroup("u and v", [self.row, self.col], self.settings.factor_learning_rate)
        return [*super().groups(), factors]

    def task_prompts(self) -> Float[Tensor, "M K P D"]:
        """Return θ_j ∘ (u_k v_kᵀ) for every particle and task."""
        return compose(self.particles[:, None], self.row, self.col)

    def _prompts(self, task: int) -> Float[Tensor, "M P D"]:
        return self.task_prompts()[:, task].detach()

    def _gradients(
        self, batches: Mapping[str, TokenBatch], choices: Mapping[str, Choice]
    ) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M P D"]]:
        task_of = [k for k, batch in enumerate(batches.values()) for _ in range(len(batch))]
        own = self.task_prompts()[:, task_of]  # [M, N, P, D]
        losses, pulled = self._pull(own.detach(), batches, choices)
        # The gradient of this sum is the engine's, pulled back through θ ∘ (u vᵀ).
        gradient, row, col = torch.autograd.grad((own * pulled).sum(), [self.particles, self.row, self.col])
        self.row.grad, self.col.grad = row / len(self.particles), col / len(self.particles)
        return losses, gradient
