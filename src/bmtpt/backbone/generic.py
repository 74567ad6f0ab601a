"""The engine that runs Hugging Face's own T5 forward: the reference for every other one.

Frozen weights are cast once, and examples are grouped across prompts (`packing.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.backbone.passes import IGNORED, PassEngine, at_least_fp32, decoder_inputs


@dataclass(frozen=True)
class HuggingFaceEngine(PassEngine):
    """`Engine` over the model's own forward pass."""

    def encode(self, embeddings: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None) -> Float[Tensor, "R S D"]:
        states: Tensor = self.backbone.model.encoder(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        return states

    def decode_losses(
        self, states: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None, targets: Int[Tensor, "n C T"]
    ) -> Float[Tensor, "R C"]:
        R, C = len(states), targets.shape[1]
        labels = targets.repeat_interleave(R // len(targets), dim=0).flatten(0, 1)  # [R·C, T]
        logits = self.backbone.model(
            encoder_outputs=(states.repeat_interleave(C, dim=0),),
            attention_mask=None if mask is None else mask.repeat_interleave(C, dim=0),
            decoder_input_ids=decoder_inputs(labels, self.backbone.model.config.decoder_start_token_id),
            use_cache=False,
        ).logits  # [R·C, T, V]
        loss = F.cross_entropy(at_least_fp32(logits).transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return loss.sum(dim=1).view(R, C)
