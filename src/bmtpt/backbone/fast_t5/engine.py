"""The fast engine: T5 as functions of frozen weights, equal to Hugging Face's model to rounding.

No weight gradients, norm gains folded into the following weights (`weights.py`), q, k and v in one matmul, cross
attention without keys and values, the decoder's first self-attention once per example, logits at label positions only.
The sub-layers are in `layers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bmtpt.backbone.encoder_decoder.engine import PassEngine, decoder_inputs
from bmtpt.backbone.execution import Memory
from bmtpt.backbone.fast_t5.layers import CrossAttention, FeedForward, FinalNorm, SelfAttention, run, token_losses
from bmtpt.backbone.fast_t5.weights import Layer, folded_layers
from bmtpt.backbone.model.families import is_spread
from bmtpt.backbone.model.frozen import FrozenModel

ACTIVATIONS = ("relu", "gated-gelu")


def packed_supports(backbone: FrozenModel) -> str | None:
    """Return why `PackedT5Engine` cannot run this backbone, or None if it can."""
    config = backbone.model.config
    if config.model_type != "t5":
        return f"it is a {config.model_type} model, not a T5"
    if config.feed_forward_proj not in ACTIVATIONS:
        return f"its feed-forward layer is '{config.feed_forward_proj}', not one of {', '.join(ACTIVATIONS)}"
    if is_spread(backbone.model):
        return "its weights are spread (auto-map)"
    if backbone.dtype not in (torch.float64, torch.float32, torch.bfloat16):
        return f"its weights are {backbone.dtype}"
    plain = (torch.nn.Linear, torch.nn.Embedding)
    for module in backbone.model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2 and type(module) not in plain:
            return f"it has {type(module).__name__} layers, not plain weights"
    if config.dropout_rate and backbone.model.training:
        return "it is in training mode with dropout"
    return None


@dataclass(frozen=True)
class PackedT5Engine(PassEngine):
    """`Engine` for T5 v1.0 (ReLU, tied head), v1.1 and FLAN-T5 (gated GELU, own head); see `packed_supports`.

    Holds a second copy of the layers' weights, with gains folded in; embeddings and head are shared with the model.

    Attributes:
        memory: ``keep`` what the backward pass needs, or ``recompute`` it from each layer's input: the same gradient,
            less memory, more time.
    """

    memory: Memory = "keep"

    name: ClassVar[str] = "packed"

    def encode(self, embeddings: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None) -> Float[Tensor, "R S D"]:
        encoder, (R, S, _) = self.backbone.model.encoder, embeddings.shape
        bias = _joined_bias(_relative(encoder, S), _padding(mask, embeddings.dtype), R)
        x = embeddings.flatten(0, 1)  # [R·S, D]
        for layer in self._encoder:
            x = self._kept(x, layer, bias, None, None)
        states = run(FinalNorm, x, encoder.final_layer_norm.weight, self._eps)
        return states.view_as(embeddings)

    def decode_losses(
        self, states: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None, targets: Int[Tensor, "n C T"]
    ) -> Float[Tensor, "R C"]:
        decoder, config, eps = self.backbone.model.decoder, self.backbone.model.config, self._eps
        (n, C, T), R = targets.shape, len(states)
        added = _padding(mask, states.dtype)
        padding = None if added is None else added[:, 0]  # [R, 1, S]
        causal = torch.full((T, T), _unseen(states.dtype), dtype=states.dtype, device=states.device).triu(1)[None, None]
        relative = _relative(decoder, T)
        ids = decoder_inputs(targets.flatten(0, 1), config.decoder_start_token_id)
        x = decoder.embed_tokens(ids).flatten(0, 1)  # [n·C·T, D]
        first, *others = self._decoder
        # Nothing before the first cross attention depends on the prompt, so it is computed once per example.
        x = run(SelfAttention, x, first.attention, _joined_bias(relative, causal, n * C), eps)
        x = x.view(n, C * T, -1).repeat_interleave(R // n, dim=0).flatten(0, 1)  # [R·C·T, D]
        x = self._kept(x, first, None, states, padding)
        bias = _joined_bias(relative, causal, R * C)
        for layer in others:
            x = self._kept(x, layer, bias, states, padding)
        x = run(FinalNorm, x, decoder.final_layer_norm.weight, eps)
        x = x * config.d_model**-0.5 if config.scale_decoder_outputs else x
        labels = targets.repeat_interleave(R // n, dim=0)
        return token_losses(x, self.backbone.model.lm_head.weight, labels.flatten()).view(labels.shape).sum(dim=2)

    def _layer(
        self, x: Tensor, layer: Layer, bias: Tensor | None, states: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        """Return a layer's output; without a bias, from what its self-attention returned."""
        if bias is not None:
            x = run(SelfAttention, x, layer.attention, bias, self._eps)
        if states is not None:
            x = run(CrossAttention, x, states, layer.cross, padding, self._eps)
        return run(FeedForward, x, layer.feed_forward, self._eps)

    def _kept(self, *inputs: Any) -> Tensor:
        """Run a layer, keeping for the backward pass what `memory` says."""
        if self.memory == "keep":
            return self._layer(*inputs)
        result: Tensor = checkpoint(self._layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return result

    @property
    def _eps(self) -> float:
        return float(self.backbone.model.config.layer_norm_epsilon)

    @cached_property
    def _encoder(self) -> list[Layer]:
        return folded_layers(self.backbone.model.encoder)

    @cached_property
    def _decoder(self) -> list[Layer]:
        return folded_layers(self.backbone.model.decoder)


def _joined_bias(relative: Tensor, extra: Tensor | None, rows: int) -> Tensor:
    """Return [R·h, S, S], where a batched matmul starts: the relative bias [1, h, S, S] and what else is added."""
    full = relative if extra is None else relative + extra
    return full.expand(rows, -1, -1, -1).reshape(-1, *full.shape[2:])


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
