"""The fast engine for decoder-only models: a prompt's keys and values are computed once and shared by its examples.

The prompt comes first, so under the causal mask no later token changes its keys and values. One forward pass
over [M, P] gives them for every layer; each example then continues from a copy. In training, the examples' passes
accumulate the gradient in the keys and values, and one backward pass over [M, P] takes it to the prompts.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.backbone.decoder_only.engine import CausalPassEngine, Reading, folded_head
from bmtpt.backbone.decoder_only.generic import HuggingFaceCausalEngine
from bmtpt.backbone.engine import Shared
from bmtpt.backbone.model.families import is_spread
from bmtpt.backbone.model.frozen import FrozenModel
from bmtpt.backbone.passes import sound_attention
from bmtpt.types import TokenBatch

NEEDED = ("inputs_embeds", "past_key_values", "position_ids", "attention_mask", "logits_to_keep")

WINDOWS = ("sliding_window", "window_size", "attention_window", "attention_chunk_size")
"""Where configurations note that a token sees the last ones only; a window counts padding as tokens."""

AGREEMENT = {torch.float64: 1e-3, torch.float32: 1e-3}
"""Largest relative difference of the trial's losses; other dtypes: 2e-2. A wrong position or mask gives more."""


def causal_supports(backbone: FrozenModel) -> str | None:
    """Return why `CausalEngine` cannot run this backbone, or None if it can.

    An untried architecture may accept positions and caches and ignore them, so at the end the model itself is tried: a
    few tokens, with and without sharing.
    """
    from transformers.cache_utils import DynamicLayer

    if not backbone.decoder_only:
        return f"it is a {backbone.model.config.model_type} model, not a decoder-only one"
    if is_spread(backbone.model):
        return "its weights are spread (auto-map)"
    accepted = inspect.signature(backbone.model.forward).parameters
    if missing := [name for name in NEEDED if name not in accepted]:
        return f"its forward takes no {missing[0]}"
    if windows := [key for key in WINDOWS if getattr(backbone.model.config, key, None)]:
        return f"its attention has a window ({windows[0]})"
    try:
        # Kinds of cache layers (sliding window, linear attention) in which a prefix may be forgotten.
        layers = {type(each) for each in new_cache(backbone.model.config, ()).layers} - {DynamicLayer}
        if layers:
            return f"its cache has {', '.join(sorted(each.__name__ for each in layers))}, not full attention alone"
        ids = torch.arange(7, device=backbone.device) % backbone.vocab_size
        prompts = backbone.embed(ids[:6]).view(2, 3, -1)
        batch = TokenBatch([ids[1:3], ids[2:7]], [ids[3:5], ids[:1]])
        truth = HuggingFaceCausalEngine(backbone).losses(prompts, batch)
        difference = (CausalEngine(backbone).losses(prompts, batch) - truth).norm() / truth.norm()
        if not difference < AGREEMENT.get(backbone.dtype, 2e-2):
            return "sharing the prompt's keys and values changes its losses"
    except Exception as error:  # whatever the model's own code raises: the trial is there to find it out
        return f"its trial failed ({type(error).__name__})"
    return None


@dataclass(frozen=True)
class CausalEngine(CausalPassEngine):
    """`Engine` for decoder-only models with full attention; see `causal_supports`."""

    name: ClassVar[str] = "packed"

    def prefix(self, prompts: Float[Tensor, "M P D"]) -> Shared:
        """Return keys and values [M, heads, P, d] of every layer: k₁, v₁, k₂, v₂, …"""
        model, cache, (M, P, D) = self.backbone.model, new_cache(self.backbone.model.config, ()), prompts.shape
        # Models refuse to read nothing: of no rows, a stand-in tells the shapes, and its own keys and values go.
        rows = prompts if P else prompts.new_zeros(M, 1, D)
        with sound_attention(self.backbone.device), folded_head(model):
            model(inputs_embeds=rows.to(self.backbone.dtype), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return tuple(state[:, :, :P] for layer in cache.layers for state in (layer.keys, layer.values))

    def read(self, shared: Shared, examples: int) -> Reading:
        # Cast after the repeat: the gradient over n examples is then summed in fp32.
        copies = shared if examples == 1 else [state.repeat(examples, 1, 1, 1) for state in shared]
        states = [state.to(self.backbone.dtype) for state in copies]  # [n·M, heads, P, d]
        rows, P = states[0].shape[0], states[0].shape[2]
        mask = torch.ones(rows, P, dtype=torch.int64, device=states[0].device)
        return CachedReading(self.backbone.model, new_cache(self.backbone.model.config, states), mask)


@dataclass
class CachedReading(Reading):
    """Rows whose keys and values so far are kept.

    Attributes:
        cache: transformers' cache of all that was read, padding included.
        mask: 1 where the cache holds a token, 0 where padding.
    """

    model: Any
    cache: Any
    mask: Int[Tensor, "R S"]

    def feed(self, ids: Int[Tensor, "R S"], real: Int[Tensor, "R S"], keep: int) -> Float[Tensor, "R T V"]:
        start = self.mask.sum(dim=1, keepdim=True)  # [R, 1] tokens read so far: the next one's position
        self.mask = torch.cat([self.mask, real], dim=1)
        with folded_head(self.model) as read:
            logits: Tensor = self.model(
                inputs_embeds=self.model.get_input_embeddings()(ids),
                past_key_values=self.cache,
                attention_mask=None if self.mask.all() else self.mask,
                position_ids=start + (real.cumsum(dim=1) - 1).clamp(min=0),
                use_cache=True,
                logits_to_keep=keep,
            ).logits
        self.last = read[0][:, -1]
        return logits

    def repeat(self, copies: int) -> None:
        self.cache.batch_repeat_interleave(copies)
        self.mask = self.mask.repeat_interleave(copies, dim=0)


def new_cache(config: Any, states: Sequence[Tensor]) -> Any:
    """Return transformers' cache that holds keys and values (k₁, v₁, k₂, v₂, …), or an empty one."""
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache(config=config)
    for layer, keys, values in zip(cache.layers, states[::2], states[1::2], strict=False):
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
    return cache
