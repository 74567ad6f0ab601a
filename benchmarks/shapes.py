"""The T5s that are timed: published shapes with random weights, because what a step costs does not depend on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from bmtpt.backbone import Backbone


@dataclass(frozen=True)
class Shape:
    """A T5 in the letters of the floor (`flops.py`).

    Attributes:
        D: Width.
        f: Width of the feed-forward layer.
        layers: le, ld: of the encoder and of the decoder.
        heads: Attention heads.
        k: Width of a head.
        V: Vocabulary.
        gated: v1.1 and FLAN (gated GELU, a head of its own) instead of v1.0 (ReLU, tied and scaled head).
    """

    D: int
    f: int
    layers: tuple[int, int]
    heads: int
    k: int = 64
    V: int = 32_128
    gated: bool = False


SHAPES = {
    "t5-small": Shape(512, 2048, (6, 6), 8),
    "flan-t5-small": Shape(512, 1024, (8, 8), 6, gated=True),
    "t5-base": Shape(768, 3072, (12, 12), 12),
    "t5-large": Shape(1024, 4096, (24, 24), 16),
    "t5-3b": Shape(1024, 16_384, (24, 24), 32, k=128),
    "tiny": Shape(32, 48, (2, 2), 2, k=8, V=96),
    "tiny-gated": Shape(32, 48, (2, 2), 2, k=8, V=96, gated=True),
}
TINY = ("tiny", "tiny-gated")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@lru_cache(maxsize=1)
def random_model(shape: Shape, seed: int = 0) -> Any:
    """Return Hugging Face's T5 of a shape as it ships: fp32 on the CPU, eager attention, without dropout.

    Callers work on copies: the next call for the same shape gets the same model.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=shape.V,
        d_model=shape.D,
        d_kv=shape.k,
        d_ff=shape.f,
        num_layers=shape.layers[0],
        num_decoder_layers=shape.layers[1],
        num_heads=shape.heads,
        feed_forward_proj="gated-gelu" if shape.gated else "relu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    config.scale_decoder_outputs = not shape.gated
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config).eval()
        if shape.gated:  # transformers ties the head of every T5 that is built from a configuration
            model.lm_head.weight = torch.nn.Parameter(shape.D**-0.5 * torch.randn(shape.V, shape.D))
    return model.requires_grad_(False)


def as_backbone(model: Any, name: str) -> Backbone:
    """Wrap a model as `Backbone.from_pretrained` would, its fused GELU included."""
    for module in model.modules():
        if type(getattr(module, "act", None)).__name__ == "NewGELUActivation":
            module.act = torch.nn.GELU(approximate="tanh")
    return Backbone(name, model, None, "")
