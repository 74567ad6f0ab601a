"""The independent truth of the engine tests: Hugging Face's T5, one example and one prompt at a time, no padding."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from bmtpt.backbone import Backbone
from bmtpt.types import TokenBatch

VOCABULARY = 60
Loss = Callable[[Backbone, Tensor, Tensor, Tensor], Tensor]
"""−log p(target | [prompt; embed(text)]) of a backbone, a prompt, a text and a target."""


def tiny_backbone(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Backbone:
    """A random T5: "v1.0" has ReLU and a tied, scaled head; "v1.1" a gated GELU and a head of its own."""
    first = family == "v1.0"
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=24,
        d_kv=10,
        d_ff=40,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=3,
        feed_forward_proj="relu" if first else "gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
        attn_implementation="eager",
        **changes,
    )
    config.scale_decoder_outputs = first
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config).eval().requires_grad_(False)
        for name, weight in model.named_parameters():
            # Gains of exactly 1 would hide a gain that is forgotten, and scores near 0 a wrong softmax.
            weight.copy_(1 + 0.3 * torch.randn_like(weight) if "norm" in name else 1.5 * weight)
        if not first:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, 24), requires_grad=False)
    return Backbone(family, model.to(dtype), None, "")


def in_float64(backbone: Backbone) -> Backbone:
    """Return a copy in float64 throughout: Hugging Face's T5 norm, which is fp32 always, gives way to torch's."""
    model = deepcopy(backbone.model).double()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if hasattr(child, "variance_epsilon"):
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(module, name, norm)
    return replace(backbone, model=model)


def random_prompts(M: int, P: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(M, P, 24, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_batch(lengths: list[int], label_lengths: list[int], seed: int = 0) -> TokenBatch:
    random = torch.Generator().manual_seed(seed)

    def ids(counts: list[int]) -> list[Tensor]:
        return [torch.randint(1, VOCABULARY, (count,), generator=random) for count in counts]

    return TokenBatch(ids(lengths), ids(label_lengths))


def plain_loss(backbone: Backbone, prompt: Tensor, text: Tensor, target: Tensor) -> Tensor:
    """Return −log p(target | [prompt; embed(text)])."""
    embedded = torch.cat([prompt.to(backbone.dtype), backbone.model.get_input_embeddings()(text)])
    logits = backbone.model(inputs_embeds=embedded[None], labels=target[None]).logits[0]
    return -logits.to(prompt.dtype).log_softmax(-1)[torch.arange(len(target)), target].sum()


def plain_losses(backbone: Backbone, prompts: Tensor, batch: TokenBatch, loss: Loss = plain_loss) -> Tensor:
    pairs = list(zip(batch.inputs, batch.targets, strict=True))
    return torch.stack([torch.stack([loss(backbone, prompt, *pair) for pair in pairs]) for prompt in prompts])


def plain_gradients(
    backbone: Backbone, prompts: Tensor, batch: TokenBatch, weights: Tensor, loss: Loss = plain_loss
) -> tuple[Tensor, Tensor]:
    """Return losses [M, N] and ∂/∂prompts Σ weights·losses by autograd over the whole batch at once."""
    leaf = prompts.clone().requires_grad_(True)
    losses = plain_losses(backbone, leaf, batch, loss)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), leaf)
    return losses.detach(), gradient


def relative(value: Tensor, truth: Tensor) -> float:
    return float((value - truth).norm() / truth.norm())
