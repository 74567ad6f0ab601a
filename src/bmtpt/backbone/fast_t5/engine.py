"""The fast engine: T5 as functions of frozen weights, equal to Hugging Face's model to rounding.

No weight gradients, norm gains folded into the following weights (`weights.py`), q, k and v in one matmul, cross
attention without keys and values, the decoder's first self-attention once per example, logits at label positions only.
How the sub-layers are computed and padded is a `Plan` for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bmtpt.backbone.device.graphs import ROUNDED, TOLERANCE, GraphedPasses
from bmtpt.backbone.device.machine import tuned
from bmtpt.backbone.device.plan import DeviceBudget, Plan, budget_for, plan_for
from bmtpt.backbone.encoder_decoder.engine import PassEngine, decoder_inputs
from bmtpt.backbone.fast_t5.autograd_layers import AutogradLayers
from bmtpt.backbone.fast_t5.layers import WrittenLayers
from bmtpt.backbone.fast_t5.weights import (
    AttentionWeights,
    CrossWeights,
    DecoderLayer,
    EncoderLayer,
    FeedForwardWeights,
    decoder_layers,
    encoder_layers,
)
from bmtpt.backbone.model.frozen import FrozenModel
from bmtpt.backbone.passes.packing import Pass, passes

ACTIVATIONS = ("relu", "gated-gelu")


def packed_supports(backbone: FrozenModel) -> str | None:
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


class Layers(Protocol):
    """T5's sub-layers on activations [R·S, D], each with its residual; ``weights`` have the norm's gain folded in."""

    def bias(self, relative: Tensor, extra: Tensor | None, rows: int) -> Tensor:
        """Join the relative bias [1, h, S, S] with what else is added to the scores ([R or 1, 1, S or 1, S])."""
        ...

    def self_attention(self, x: Tensor, weights: AttentionWeights, bias: Tensor, eps: float) -> Tensor: ...

    def cross_attention(
        self, x: Tensor, states: Tensor, weights: CrossWeights, mask: Tensor | None, eps: float
    ) -> Tensor: ...

    def feed_forward(self, x: Tensor, weights: FeedForwardWeights, eps: float) -> Tensor: ...

    def final_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor: ...

    def token_losses(self, x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of every row of x in fp32 or better, 0 where the label is IGNORED."""
        ...


@dataclass(frozen=True)
class PackedT5Engine(PassEngine):
    """`Engine` for T5 v1.0 (ReLU, tied head), v1.1 and FLAN-T5 (gated GELU, own head); see `packed_supports`.

    Holds a second copy of the layers' weights, with gains folded in; embeddings and head are shared with the model.

    Attributes:
        chosen: How the device is used; None is `plan_for` the backbone's device.
    """

    chosen: Plan | None = None

    name: ClassVar[str] = "packed"

    @cached_property
    def plan(self) -> Plan:
        return self.chosen or plan_for(self.backbone.device)

    def encode(self, embeddings: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None) -> Float[Tensor, "R S D"]:
        encoder, (R, S, _) = self.backbone.model.encoder, embeddings.shape
        bias = self._layers.bias(_relative(encoder, S), _padding(mask, embeddings.dtype), R)
        x = embeddings.flatten(0, 1)  # [R·S, D]
        for layer in self._encoder:
            x = self._kept(self._encoder_layer, x, layer, bias)
        states = self._layers.final_norm(x, encoder.final_layer_norm.weight, self._eps)
        return states.view_as(embeddings)

    def _encoder_layer(self, x: Tensor, layer: EncoderLayer, bias: Tensor) -> Tensor:
        x = self._layers.self_attention(x, layer.attention, bias, self._eps)
        return self._layers.feed_forward(x, layer.feed_forward, self._eps)

    def decode_losses(
        self, states: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None, targets: Int[Tensor, "n C T"]
    ) -> Float[Tensor, "R C"]:
        padding = _padding(mask, states.dtype)
        x = self._decode(states, None if padding is None else padding[:, 0], targets)  # [R·C·T, D]
        labels = _each(targets, len(states) // len(targets))
        loss = self._layers.token_losses(x, self.backbone.model.lm_head.weight, labels.flatten())
        return loss.view(labels.shape).sum(dim=2)

    def _decode(self, states: Tensor, padding: Tensor | None, targets: Int[Tensor, "n C T"]) -> Tensor:
        decoder, config, eps = self.backbone.model.decoder, self.backbone.model.config, self._eps
        (n, C, T), R = targets.shape, len(states)
        causal = torch.full((T, T), _unseen(states.dtype), dtype=states.dtype, device=states.device).triu(1)[None, None]
        relative = _relative(decoder, T)
        ids = decoder_inputs(targets.flatten(0, 1), config.decoder_start_token_id)
        x = decoder.embed_tokens(ids).flatten(0, 1)  # [n·C·T, D]
        first, *others = self._decoder
        # What stands in front of the first cross attention does not depend on the prompt: once per example.
        x = self._layers.self_attention(x, first.attention, self._layers.bias(relative, causal, n * C), eps)
        x = _each(x.view(n, C * T, -1), R // n).flatten(0, 1)  # [R·C·T, D]
        x = self._kept(self._behind_self_attention, x, states, first, padding)
        bias = self._layers.bias(relative, causal, R * C)
        for layer in others:
            x = self._kept(self._decoder_layer, x, states, layer, bias, padding)
        x = self._layers.final_norm(x, decoder.final_layer_norm.weight, eps)
        return x * config.d_model**-0.5 if config.scale_decoder_outputs else x

    def _decoder_layer(
        self, x: Tensor, states: Tensor, layer: DecoderLayer, bias: Tensor, padding: Tensor | None
    ) -> Tensor:
        x = self._layers.self_attention(x, layer.attention, bias, self._eps)
        return self._behind_self_attention(x, states, layer, padding)

    def _behind_self_attention(self, x: Tensor, states: Tensor, layer: DecoderLayer, padding: Tensor | None) -> Tensor:
        x = self._layers.cross_attention(x, states, layer.cross, padding, self._eps)
        return self._layers.feed_forward(x, layer.feed_forward, self._eps)

    def _kept(self, layer: Callable[..., Tensor], *inputs: object) -> Tensor:
        """Run a layer, keeping for the backward pass what it asks for, or its inputs only (``memory=recompute``)."""
        if self.plan.memory == "keep":
            return layer(*inputs)
        result: Tensor = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return result

    def cut(self, lengths: Sequence[int], prompts: int) -> list[Pass]:
        padded = [self.padded_length(length) for length in lengths]
        return passes(padded, prompts, self.most_tokens(), self.plan.pass_cost)

    def most_tokens(self) -> int:
        device = self._device_budget
        return self.plan.token_budget or (self.token_budget if device is None else device.tokens)

    def padded_length(self, length: int) -> int:
        return _rounded_up(length, self.plan.length_multiple)

    def padded_labels(self, length: int) -> int:
        return _rounded_up(length, self.plan.label_multiple)

    def settings(self) -> AbstractContextManager[object]:
        return tuned(self.plan, self.backbone.dtype, "packed") if self.backbone.device.type == "cpu" else nullcontext()

    def pass_gradients(
        self, prompts: Tensor, ids: Tensor, mask: Tensor | None, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.graphs is None:
            return super().pass_gradients(prompts, ids, mask, targets, weights)
        losses, gradient = self.graphs(super().pass_gradients, prompts, ids, mask, targets, weights)
        return losses, gradient

    def free_memory(self) -> None:
        if self.graphs is not None:
            self.graphs.clear()
        if self._device_budget is not None:
            self._device_budget.halve()
        super().free_memory()

    @property
    def _eps(self) -> float:
        return float(self.backbone.model.config.layer_norm_epsilon)

    @cached_property
    def _layers(self) -> Layers:
        return WrittenLayers() if self.plan.layers == "written" else AutogradLayers(self.plan.attention)

    @cached_property
    def _device_budget(self) -> DeviceBudget | None:
        return budget_for(self.backbone, self.plan)

    @cached_property
    def graphs(self) -> GraphedPasses | None:
        """Passes as CUDA graphs, if the plan wants them and its layers never wait for a number from the device."""
        if not self.plan.graphs or self.plan.layers != "autograd":
            return None
        return GraphedPasses(TOLERANCE.get(self.backbone.dtype, ROUNDED))

    @cached_property
    def _encoder(self) -> list[EncoderLayer]:
        return encoder_layers(self.backbone.model.encoder)

    @cached_property
    def _decoder(self) -> list[DecoderLayer]:
        return decoder_layers(self.backbone.model.decoder)


def _relative(stack: Any, S: int) -> Tensor:
    """Return the relative position bias [1, h, S, S]."""
    return stack.block[0].layer[0].SelfAttention.compute_bias(S, S)  # type: ignore[no-any-return]


def _padding(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return [R, 1, 1, S] to add to the scores, or None where nothing is padded."""
    if mask is None:
        return None
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return added.masked_fill_(mask == 0, _unseen(dtype))[:, None, None]


def _unseen(dtype: torch.dtype) -> float:
    """Return what makes a score's exponential 0; finite, because a fused kernel may meet a tile of nothing else."""
    return torch.finfo(dtype).min / 2


def _each(examples: Tensor, copies: int) -> Tensor:
    """Give every row of an example its own copy, side by side."""
    return examples.repeat_interleave(copies, dim=0)


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
