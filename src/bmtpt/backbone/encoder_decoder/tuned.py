"""The engine of a model whose weights are trained: Hugging Face's forward, for it alone sees every added weight.

`PackedT5Engine` folds frozen weights once and knows no biases, LoRA or adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.engine import Shared, Written


@dataclass(frozen=True)
class TunedEngine(HuggingFaceEngine):
    """`Engine` in mixed precision.

    `gradients` also adds to the ``.grad`` of every weight that requires one.

    Attributes:
        dtype: Compute dtype of the frozen model; bfloat16 is kept by autocast, as the trained weights are fp32.
    """

    dtype: torch.dtype

    def encode(self, embeddings: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None) -> Float[Tensor, "R S D"]:
        with self._autocast():
            return super().encode(embeddings, mask)

    def decode_losses(
        self, states: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None, targets: Int[Tensor, "n C T"]
    ) -> Float[Tensor, "R C"]:
        with self._autocast():
            return super().decode_losses(states, mask, targets)

    def pulled_back(self, total: Float[Tensor, ""], shared: Shared) -> Sequence[Tensor]:
        tuned = [weight for weight in self.backbone.model.parameters() if weight.requires_grad]
        pulled, *gradients = torch.autograd.grad(total, [*shared, *tuned])
        # Only now that the whole pass is through: one that memory is too small for is run again in halves.
        for weight, gradient in zip(tuned, gradients, strict=True):
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        return [pulled]

    def generate(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], max_new_tokens: int
    ) -> list[list[Written]]:
        with self._autocast():
            return super().generate(prompts, inputs, max_new_tokens)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.backbone.device.type, self.dtype) if self.dtype == torch.bfloat16 else nullcontext()
