"""What every method asks of the frozen model: the likelihood p(y | [θ; embed(x)]) and its gradient in θ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from bmtpt.types import TokenBatch


class Engine(Protocol):
    """Pairs M prompts with N examples. Losses and gradients are fp32 whatever the compute dtype.

    Prompts are [M, P, D], the same for every example, or [M, N, P, D], where example n has prompts of its own.
    """

    def losses(self, prompts: Float[Tensor, "M *N P D"], batch: TokenBatch) -> Float[Tensor, "M N"]:
        """Return −log p(y_n | [θ_m; embed(x_n)]), summed over the target's tokens."""
        ...

    def gradients(
        self, prompts: Float[Tensor, "M *N P D"], batch: TokenBatch, weights: Float[Tensor, " N"]
    ) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M *N P D"]]:
        """Return the losses and ∂/∂θ Σ_mn weights_n · loss_mn, in the shape of the prompts."""
        ...

    def answer_log_likelihoods(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], answers: Sequence[Tensor]
    ) -> Float[Tensor, "M N C"]:
        """Return log p(answer_c | [θ_m; embed(x_n)]) for every answer."""
        ...

    def generate(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], max_new_tokens: int
    ) -> list[list[str]]:
        """Decode greedily; return M lists of N texts."""
        ...
