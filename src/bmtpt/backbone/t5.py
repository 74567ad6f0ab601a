"""The fast engine: T5 as functions of frozen weights (`t5_layers.py`), equal to Hugging Face's model to rounding.

No weight gradients, norm gains folded into the following weights, q, k and v in one matmul, cross attention without
keys and values, logits at label positions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.backbone.allocator import kept_memory
from bmtpt.backbone.model import Backbone
from bmtpt.backbone.passes import IGNORED, PassEngine, decoder_inputs
from bmtpt.backbone.t5_layers import (
    AttentionWeights,
    CrossAttention,
    CrossWeights,
    FeedForward,
    FeedForwardWeights,
    FinalNorm,
    SelfAttention,
    TokenLoss,
    run,
)

ACTIVATIONS = ("relu", "gated-gelu")


def packed_supports(backbone: Backbone) -> str | None:
    """Return why `PackedT5Engine` cannot run this backbone, or None if it can."""
    config = backbone.model.config
    if config.model_type != "t5":
        return f"it is a {config.model_type} model, not a T5"
    if config.feed_forward_proj not in ACTIVATIONS:
        return f"its feed-forward layer is '{config.feed_forward_proj}', not one of {', '.join(ACTIVATIONS)}"
    if backbone.dtype not in (torch.float64, torch.float32, torch.bfloat16):
        return f"its weights are {backbone.dtype}"
    if config.dropout_rate and backbone.model.training:
        return "it is in training mode with dropout"
    return None


@dataclass(frozen=True)
class EncoderLayer:
    attention: AttentionWeights
    feed_forward: FeedForwardWeights


@dataclass(frozen=True)
class DecoderLayer:
    attention: AttentionWeights
    cross: CrossWeights
    feed_forward: FeedForwardWeights


@dataclass(frozen=True)
class PackedT5Engine(PassEngine):
    """`Engine` for T5 v1.0 (ReLU, tied head), v1.1 and FLAN-T5 (gated GELU, own head); see `packed_supports`.

    Holds a second copy of the layers' weights, with gains folded in; embeddings and head are shared with the model.

    Attributes:
        keep_memory: Keep freed memory from pass to pass while a call runs (`allocator.py`).
    """

    keep_memory: bool = True

    def encode(self, embeddings: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"]) -> Float[Tensor, "R S D"]:
        encoder, eps = self.backbone.model.encoder, self._eps
        bias = self._bias(encoder, embeddings.shape[1], _padding(mask, embeddings.dtype), len(embeddings))
        x = embeddings.flatten(0, 1)  # [R·S, D]
        for layer in self._encoder:
            x = run(SelfAttention, x, layer.attention, bias, eps)
            x = run(FeedForward, x, layer.feed_forward, eps)
        states = run(FinalNorm, x, encoder.final_layer_norm.weight, eps)
        return states.view_as(embeddings)

    def decode_losses(
        self, states: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"], targets: Int[Tensor, "R C T"]
    ) -> Float[Tensor, "R C"]:
        labels = targets.flatten(0, 1)  # [R·C, T]
        x = self._decode(states, _padding(mask, states.dtype), labels)  # [R·C·T, D]
        real = labels != IGNORED
        loss = run(TokenLoss, x[real.flatten()], self.backbone.model.lm_head.weight, labels[real])  # [tokens]
        padded = loss.new_zeros(labels.shape).masked_scatter(real, loss)  # [R·C, T]
        return padded.sum(dim=1).view(targets.shape[:2])

    def _passes(self, prompts: Tensor, inputs: Sequence[Tensor]) -> Iterator[list[int]]:
        with kept_memory() if self.keep_memory else nullcontext():
            yield from super()._passes(prompts, inputs)

    def _decode(self, states: Tensor, padding: Tensor | None, labels: Tensor) -> Tensor:
        decoder, config, eps = self.backbone.model.decoder, self.backbone.model.config, self._eps
        rows, T = labels.shape
        causal = torch.full((T, T), -torch.inf, dtype=states.dtype, device=states.device).triu(1)
        bias = self._bias(decoder, T, causal[None], rows)
        x = F.embedding(decoder_inputs(labels, config.decoder_start_token_id), decoder.embed_tokens.weight)
        x = x.flatten(0, 1)  # [R·C·T, D]
        for layer in self._decoder:
            x = run(SelfAttention, x, layer.attention, bias, eps)
            x = run(CrossAttention, x, states, layer.cross, padding, eps)
            x = run(FeedForward, x, layer.feed_forward, eps)
        x = run(FinalNorm, x, decoder.final_layer_norm.weight, eps)
        return x * config.d_model**-0.5 if config.scale_decoder_outputs else x

    def _bias(self, stack: Any, S: int, extra: Tensor | None, rows: int) -> Tensor:
        """Relative position bias plus what else is added to the scores ([R or 1, S or 1, S]), as [R·h, S, S]."""
        bias = stack.block[0].layer[0].SelfAttention.compute_bias(S, S)  # [1, h, S, S]
        bias = bias if extra is None else bias + extra[:, None]
        return bias.expand(rows, -1, -1, -1).reshape(-1, S, S)  # type: ignore[no-any-return]

    @property
    def _eps(self) -> float:
        return float(self.backbone.model.config.layer_norm_epsilon)

    @cached_property
    @torch.no_grad()
    def _encoder(self) -> list[EncoderLayer]:
        return [
            EncoderLayer(_attention(block.layer[0]), _feed_forward(block.layer[1]))
            for block in self.backbone.model.encoder.block
        ]

    @cached_property
    @torch.no_grad()
    def _decoder(self) -> list[DecoderLayer]:
        return [
            DecoderLayer(_attention(block.layer[0]), _cross(block.layer[1]), _feed_forward(block.layer[2]))
            for block in self.backbone.model.decoder.block
        ]


def _padding(mask: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return [R, 1, S] to add to the scores, or None where nothing is padded."""
    if mask.all():
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask == 0, -torch.inf)[:, None]


def _attention(layer: Any) -> AttentionWeights:
    attention = layer.SelfAttention
    parts = (attention.q, attention.k, attention.v)
    return AttentionWeights(_folded(layer, *parts), attention.o.weight.T.contiguous(), attention.n_heads)


def _cross(layer: Any) -> CrossWeights:
    attention, h = layer.EncDecAttention, layer.EncDecAttention.n_heads
    return CrossWeights(
        query=_folded(layer, attention.q),
        key=attention.k.weight.unflatten(0, (h, -1)).contiguous(),
        value=attention.v.weight.unflatten(0, (h, -1)).mT.contiguous(),
        out=attention.o.weight.T.contiguous(),
    )


def _feed_forward(layer: Any) -> FeedForwardWeights:
    dense = layer.DenseReluDense
    gated = hasattr(dense, "wi_0")
    parts = (dense.wi_0, dense.wi_1) if gated else (dense.wi,)
    return FeedForwardWeights(_folded(layer, *parts), dense.wo.weight.T.contiguous(), gated)


def _folded(layer: Any, *linears: Any) -> Tensor:
    """Return diag(gain)·[W₁ᵀ W₂ᵀ …]: the norm's gain is applied by the matmul."""
    gain, joined = layer.layer_norm.weight, torch.cat([linear.weight for linear in linears])  # [D], [out, D]
    wide = torch.promote_types(joined.dtype, torch.float32)
    folded: Tensor = (joined.to(wide) * gain.to(wide)).to(joined.dtype)  # [out, D]
    return folded.T.contiguous()
