"""The engines that run a Hugging Face model's own forward: the reference for every other one, and the fallback.

Frozen weights are cast once, and examples are grouped across prompts (`passes.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.backbone.encoder_decoder.engine import PassEngine, decoder_inputs
from bmtpt.backbone.passes import Pass, summed_nll


@dataclass(frozen=True)
class HuggingFaceEngine(PassEngine):
    """`Engine` over an encoder-decoder's own forward pass."""

    def encode(self, embeddings: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None) -> Float[Tensor, "R S D"]:
        encoder = self.backbone.model.get_encoder()
        states: Tensor = encoder(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        return states

    def decode_losses(
        self, states: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None, targets: Int[Tensor, "n C T"]
    ) -> Float[Tensor, "R C"]:
        from transformers.modeling_outputs import BaseModelOutput

        R, C = len(states), targets.shape[1]
        labels = targets.repeat_interleave(R // len(targets), dim=0).flatten(0, 1)  # [R·C, T]
        logits = self.backbone.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states.repeat_interleave(C, dim=0)),
            attention_mask=None if mask is None else mask.repeat_interleave(C, dim=0),
            decoder_input_ids=decoder_inputs(labels, self.backbone.model.config.decoder_start_token_id),
            use_cache=False,
        ).logits  # [R·C, T, V]
        return summed_nll(logits, labels).view(R, C)

    def pack(self, lengths: Sequence[int], prompts: int) -> list[Pass]:
        self.backbone.require_positions(max(lengths, default=0))
        return super().pack(lengths, prompts)
