"""What every method asks of the frozen model: the likelihood p(y | [θ; embed(x)]) and its gradient in θ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.types import TokenBatch


class Query(NamedTuple):
    """One text to answer with one prompt; the queries of a task refer to the same prompt and answers.

    Attributes:
        prompt: fp32; prompts of one call may differ in length.
        text: int64, end of sequence included.
        answers: C answers to rank, each int64 [T]; none to rank nothing.
        max_new_tokens: Longest text to generate; 0 to generate nothing.
    """

    prompt: Float[Tensor, "P D"]
    text: Int[Tensor, " L"]
    answers: Sequence[Tensor] = ()
    max_new_tokens: int = 0


class Reply(NamedTuple):
    """What a query asked for.

    Attributes:
        log_likelihoods: log p(answer_c | [θ; embed(x)]) of its answers, on the CPU.
        text: What was generated, without special tokens.
    """

    log_likelihoods: Float[Tensor, " C"]
    text: str


class Engine(Protocol):
    """Pairs M prompts with N examples. Losses and gradients are fp32 whatever the compute dtype.

    Prompts are [M, P, D], the same for every example, or [M, N, P, D], where example n has prompts of its own.

    Attributes:
        name: ``packed`` or ``generic``.
    """

    name: ClassVar[str]

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

    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        """Answer texts that each have a prompt of their own, in order."""
        ...
