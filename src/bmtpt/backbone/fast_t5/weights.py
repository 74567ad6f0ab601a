"""T5's frozen weights as the packed engine's layers take them: transposed, joined, the norms' gains folded in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bmtpt.backbone.model.pages import leave_memory


@dataclass(frozen=True)
class AttentionWeights:
    """Self-attention of h heads of width k.

    Attributes:
        qkv: [D, 3·h·k], norm gain folded in.
        out: [h·k, D].
        heads: h.
    """

    qkv: Tensor
    out: Tensor
    heads: int


@dataclass(frozen=True)
class CrossWeights:
    """Cross attention with keys and values absorbed: neither is ever formed.

    Attributes:
        query: [D, h·k], norm gain folded in.
        key: [h, k, D], the final norm gain of the encoder not folded in.
        value: [h, D, k].
        out: [h·k, D].
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor


@dataclass(frozen=True)
class FeedForwardWeights:
    """ReLU (wide = f) or gated GELU (wide = 2·f, gate first).

    Attributes:
        wide: [D, f] or [D, 2·f], norm gain folded in.
        out: [f, D].
        gated: Which of the two.
    """

    wide: Tensor
    out: Tensor
    gated: bool


@dataclass(frozen=True)
class Layer:
    """A layer of the encoder, which has no cross attention, or of the decoder."""

    attention: AttentionWeights
    cross: CrossWeights | None
    feed_forward: FeedForwardWeights


@torch.no_grad()
def folded_layers(stack: Any) -> list[Layer]:
    """Fold the layers of a Hugging Face T5 encoder or decoder; the layers themselves leave memory if they can."""
    folded = []
    for block in stack.block:
        first, *others, last = block.layer
        folded.append(Layer(_attention(first), _cross(*others) if others else None, _feed_forward(last)))
        leave_memory(block.parameters())
    return folded


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
