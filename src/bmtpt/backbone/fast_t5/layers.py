"""T5's sub-layers as hand-differentiated functions of frozen weights.

Each is y = x + f(x·r) with r = 1/rms(x), the gain of T5's norm being folded into the weights that follow it. Only
∂/∂x is computed, and only what is expensive to recompute is saved. Activations are [R·S, D], so that every linear layer
is one matmul. All dtypes work; in bfloat16, sums over D and 1/rms are taken in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bmtpt.backbone.fast_t5.weights import AttentionWeights, CrossWeights, FeedForwardWeights
from bmtpt.backbone.passes import IGNORED

HEAD_ROWS = 64
"""Rows of logits held at once: 8 MB in fp32 for T5's vocabulary."""

BLOCK_ROWS = 128
"""Rows of gated GELU at a time, which stay in cache: 64 to 256 took the same time, all rows at once 1.18 times."""

Context = Any
"""torch's autograd context, which has no public type."""


def token_losses(x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of every row of x in fp32 or better, 0 where the label is IGNORED.

    Only rows with a label are multiplied with the vocabulary.
    """
    real = (labels != IGNORED).nonzero().squeeze(1)
    losses = run(TokenLoss, x[real], head, labels[real])
    return losses.new_zeros(labels.shape).index_copy(0, real, losses)


def run(function: type[torch.autograd.Function], *inputs: object) -> Tensor:
    """`function.apply`, which torch leaves untyped."""
    return function.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Return 1/rms of each row, [rows, 1], in fp32 or better."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # type: ignore[no-any-return]


def scaled(x: Tensor, r: Tensor) -> Tensor:
    """Return x·r, multiplied in r's precision and rounded once."""
    return x.to(r.dtype, copy=True).mul_(r).to(x.dtype)


def norm_backward(residual: Tensor, grad: Tensor, x: Tensor, r: Tensor) -> Tensor:
    """Return residual + r·grad − x·r³·mean(grad·x): what flows into x from y = x + f(x·r), given ∂/∂(x·r)."""
    mean = (grad * x).sum(-1, keepdim=True, dtype=r.dtype).div_(x.shape[-1])
    narrow = x.dtype
    return torch.addcmul(residual, grad, r.to(narrow)).addcmul_(x, mean.mul_(r**3).to(narrow), value=-1)


class SelfAttention(torch.autograd.Function):
    """x + attention(x·r); T5 does not divide the scores by √k.

    Arguments: x [R·S, D], weights, bias [R·h, S, S] (relative positions, padding and causality), eps.
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, weights: AttentionWeights, bias: Tensor, eps: float) -> Tensor:
        r = inverse_rms(x, eps)
        q, k, v = qkv = _split_heads(scaled(x, r) @ weights.qkv, bias.shape[1], weights.heads, 3)
        scores = torch.baddbmm(bias, q, k.mT)  # [R·h, S, S]
        chances = torch._softmax(scores, -1, False, out=scores)
        mixed = _join_heads(torch.bmm(chances, v)[None], weights.heads)
        ctx.save_for_backward(x, r, qkv, chances)
        ctx.weights = weights
        return torch.addmm(x, mixed, weights.out)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, r, qkv, chances = ctx.saved_tensors
        weights: AttentionWeights = ctx.weights
        q, k, v = qkv
        (mixed,) = _split_heads(grad @ weights.out.T, q.shape[1], weights.heads, 1)
        pulled = torch.empty_like(qkv)
        torch.bmm(chances.mT, mixed, out=pulled[2])
        scores = torch.bmm(mixed, v.mT)
        torch._softmax_backward_data(scores, chances, -1, chances.dtype, grad_input=scores)
        torch.bmm(scores, k, out=pulled[0])
        torch.bmm(scores.mT, q, out=pulled[1])
        return norm_backward(grad, _join_heads(pulled, weights.heads) @ weights.qkv.T, x, r), None, None, None


class FeedForward(torch.autograd.Function):
    """x + feed_forward(x·r). Arguments: x [rows, D], weights, eps."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weights: FeedForwardWeights, eps: float) -> Tensor:
        r = inverse_rms(x, eps)
        wide = scaled(x, r) @ weights.wide
        if weights.gated:
            hidden, *kept = _gated(wide, ctx.needs_input_grad[0])
        else:
            hidden = wide.relu_()
            kept = [hidden]  # which also tells its slope
        ctx.save_for_backward(x, r, *kept)
        ctx.weights = weights
        return torch.addmm(x, hidden, weights.out)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        x, r, *kept = ctx.saved_tensors
        weights: FeedForwardWeights = ctx.weights
        pulled = grad @ weights.out.T
        if weights.gated:
            hidden, pulled = pulled, pulled.new_empty(len(pulled), 2 * pulled.shape[1])
            for part, slope in zip(pulled.chunk(2, dim=1), kept, strict=True):  # [gate | linear]
                torch.mul(hidden, slope, out=part)
        else:
            torch.ops.aten.threshold_backward.grad_input(pulled, kept[0], 0, grad_input=pulled)
        return norm_backward(grad, pulled @ weights.wide.T, x, r), None, None


def _gated(wide: Tensor, with_slopes: bool) -> tuple[Tensor, ...]:
    """Return gelu(gate)·linear, [rows, f], for wide = [gate | linear], and its slopes in gate and linear."""
    results = wide.new_empty(3 if with_slopes else 1, len(wide), wide.shape[1] // 2)
    parts = (torch.split(each, BLOCK_ROWS) for each in (*wide.chunk(2, dim=1), *results))
    for gate, linear, hidden, *slopes in zip(*parts, strict=True):
        value = torch.ops.aten.gelu.out(gate, approximate="tanh", out=slopes[1] if slopes else hidden)
        torch.mul(value, linear, out=hidden)
        if slopes:
            ones = torch.ones_like(gate)
            torch.ops.aten.gelu_backward.grad_input(ones, gate, approximate="tanh", grad_input=slopes[0]).mul_(linear)
    return results.unbind()


class CrossAttention(torch.autograd.Function):
    """x + cross_attention(x·r, states), with scores (q·K)·E and values (p·E)·V instead of keys E·Kᵀ and values E·V.

    With few label tokens that is far less work: T·h·D·S against S·D·h·k.
    Arguments: x [R·Q, D], states [R, S, D], weights, mask [R, 1, S] to add to the scores or None, eps.
    """

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, states: Tensor, weights: CrossWeights, mask: Tensor | None, eps: float
    ) -> Tensor:
        h = len(weights.key)
        r = inverse_rms(x, eps)
        q = (scaled(x, r) @ weights.query).view(len(x), h, -1).transpose(0, 1)  # [h, R·Q, k]
        asked = _rows_first(torch.bmm(q, weights.key), len(states))  # [R, Q·h, D]
        scores = torch.bmm(asked, states.mT) if mask is None else torch.baddbmm(mask, asked, states.mT)
        chances = torch._softmax(scores, -1, False, out=scores)  # [R, Q·h, S]
        seen = _heads_first(torch.bmm(chances, states), h)  # [h, R·Q, D]
        mixed = torch.bmm(seen, weights.value).transpose(0, 1).reshape(len(x), -1)  # [R·Q, h·k]
        ctx.save_for_backward(x, r, states, asked, chances)
        ctx.weights = weights
        return torch.addmm(x, mixed, weights.out)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, r, states, asked, chances = ctx.saved_tensors
        weights: CrossWeights = ctx.weights
        h = len(weights.key)
        mixed = (grad @ weights.out.T).view(len(x), h, -1).transpose(0, 1)  # [h, R·Q, k]
        seen = _rows_first(torch.bmm(mixed, weights.value.mT), len(states))  # [R, Q·h, D]
        scores = torch.bmm(seen, states.mT)
        torch._softmax_backward_data(scores, chances, -1, chances.dtype, grad_input=scores)
        pulled_states = torch.baddbmm(torch.bmm(chances.mT, seen), scores.mT, asked)  # [R, S, D]
        q = torch.bmm(_heads_first(torch.bmm(scores, states), h), weights.key.mT)  # [h, R·Q, k]
        pulled = q.transpose(0, 1).reshape(len(x), -1) @ weights.query.T
        return norm_backward(grad, pulled, x, r), pulled_states, None, None, None


class FinalNorm(torch.autograd.Function):
    """x·r·gain. Arguments: x [rows, D], gain [D], eps."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        r = inverse_rms(x, eps)
        ctx.save_for_backward(x, r, gain)
        return scaled(x, r).mul_(gain)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        x, r, gain = ctx.saved_tensors
        return norm_backward(torch.zeros_like(x), grad * gain, x, r), None, None


class TokenLoss(torch.autograd.Function):
    """Cross-entropy of each row in fp32 or better. Arguments: x [rows, D], head [V, D], labels [rows].

    The gradient is taken at once, a few rows at a time, so that [rows, V] is never held.
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        chunks = zip(torch.split(x, HEAD_ROWS), torch.split(labels, HEAD_ROWS), strict=True)
        parts = [_token_loss(*chunk, head, ctx.needs_input_grad[0]) for chunk in chunks]
        losses, pulled = (torch.cat(columns) for columns in zip(*parts, strict=True))
        ctx.save_for_backward(pulled)
        return losses

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        (pulled,) = ctx.saved_tensors
        return pulled * grad[:, None].to(pulled.dtype), None, None


def _token_loss(x: Tensor, labels: Tensor, head: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Return the losses, and their gradients in x (empty if not asked for)."""
    logits = x @ head.T
    wide = logits.to(torch.promote_types(x.dtype, torch.float32))  # bfloat16 has too few bits for a log-probability
    wide.sub_(wide.amax(dim=1, keepdim=True))
    right = wide.gather(1, labels[:, None])
    total = wide.exp_().sum(dim=1, keepdim=True)
    losses = (total.log() - right).squeeze(1)
    if not with_gradient:
        return losses, x[:0]
    chances = wide.div_(total).scatter_add_(1, labels[:, None], -torch.ones_like(right))
    return losses, logits.copy_(chances) @ head


def _split_heads(flat: Tensor, S: int, heads: int, parts: int) -> Tensor:
    """[R·S, parts·h·k] → contiguous [parts, R·h, S, k], the layout in which a batched matmul copies nothing."""
    split = flat.view(len(flat) // S, S, parts, heads, -1).permute(2, 0, 3, 1, 4)
    return split.reshape(parts, -1, S, split.shape[-1])


def _join_heads(split: Tensor, heads: int) -> Tensor:
    """[parts, R·h, S, k] → [R·S, parts·h·k], the inverse of `_split_heads`."""
    parts, rows, S, k = split.shape
    return split.view(parts, -1, heads, S, k).permute(1, 3, 0, 2, 4).reshape(rows // heads * S, parts * heads * k)


def _rows_first(by_head: Tensor, rows: int) -> Tensor:
    """[h, R·Q, D] → [R, Q·h, D]."""
    return by_head.transpose(0, 1).reshape(rows, -1, by_head.shape[-1])


def _heads_first(by_row: Tensor, heads: int) -> Tensor:
    """[R, Q·h, D] → [h, R·Q, D], the inverse of `_rows_first`."""
    return by_row.reshape(-1, heads, by_row.shape[-1]).transpose(0, 1)
