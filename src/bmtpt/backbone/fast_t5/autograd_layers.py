"""T5's sub-layers in torch's own functions, whose derivatives are torch's: the choice for GPUs.

The same equations as `layers.py`, on the same folded weights, in few large kernels: `F.rms_norm` and
`F.scaled_dot_product_attention` are one each on CUDA. No step waits for a number from the device, so that a pass can
be captured as a CUDA graph.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bmtpt.backbone.fast_t5.layers import TokenLoss, run
from bmtpt.backbone.fast_t5.weights import AttentionWeights, CrossWeights, FeedForwardWeights
from bmtpt.backbone.passes.loss import IGNORED

EFFICIENT = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""MATH is for devices that the memory-efficient kernel does not know."""


@dataclass(frozen=True)
class AutogradLayers:
    """Activations are [R·S, D]; the residual is added by the last matmul of each sub-layer.

    Attributes:
        attention: As in `Plan`.
    """

    attention: Literal["efficient", "any"] = "any"

    def bias(self, relative: Tensor, extra: Tensor | None, rows: int) -> Tensor:
        """Return [R, h, S, S], the last axis contiguous as the fused kernels want it; rows share memory if they can."""
        full = relative if extra is None else relative + extra
        return full.contiguous().expand(rows, -1, -1, -1)

    def self_attention(self, x: Tensor, weights: AttentionWeights, bias: Tensor, eps: float) -> Tensor:
        R, h, S, _ = bias.shape
        q, k, v = (_normed(x, eps) @ weights.qkv).view(R, S, 3, h, -1).permute(2, 0, 3, 1, 4)  # each [R, h, S, k]
        with self._kernels():
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return torch.addmm(x, mixed.transpose(1, 2).reshape(len(x), -1), weights.out)

    def _kernels(self) -> AbstractContextManager[None]:
        return nullcontext() if self.attention == "any" else sdpa_kernel(EFFICIENT)

    def cross_attention(
        self, x: Tensor, states: Tensor, weights: CrossWeights, mask: Tensor | None, eps: float
    ) -> Tensor:
        """Keys and values absorbed, as in `layers.CrossAttention`."""
        R, h = len(states), len(weights.key)
        q = (_normed(x, eps) @ weights.query).view(len(x), h, -1).transpose(0, 1)  # [h, R·Q, k]
        asked = torch.bmm(q, weights.key).transpose(0, 1).reshape(R, -1, states.shape[2])  # [R, Q·h, D]
        scores = torch.bmm(asked, states.mT)
        chances = (scores if mask is None else scores + mask).softmax(dim=-1)  # [R, Q·h, S]
        seen = torch.bmm(chances, states).view(len(x), h, -1).transpose(0, 1)  # [h, R·Q, D]
        mixed = torch.bmm(seen, weights.value).transpose(0, 1).reshape(len(x), -1)
        return torch.addmm(x, mixed, weights.out)

    def feed_forward(self, x: Tensor, weights: FeedForwardWeights, eps: float) -> Tensor:
        wide = _normed(x, eps) @ weights.wide
        if not weights.gated:
            return torch.addmm(x, wide.relu(), weights.out)
        gate, linear = wide.chunk(2, dim=1)
        return torch.addmm(x, F.gelu(gate, approximate="tanh") * linear, weights.out)

    def final_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        return _normed(x, eps) * gain

    def token_losses(self, x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        """Every position meets the vocabulary, padding too: which ones are real is known on the device only."""
        return run(TokenLoss, x, head, labels.clamp(min=0)) * (labels != IGNORED)


def _normed(x: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=eps)
