"""The independent truth of decoder-only engines: the model on one example and one prompt, no padding and no cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import plain
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from bmtpt.backbone import Backbone

VOCABULARY = 60
_ROTARY = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "gpt2": (GPT2Config, {"n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": 256}),
    "llama": (LlamaConfig, _ROTARY),
    "qwen2": (Qwen2Config, _ROTARY),
    "qwen3": (Qwen3Config, {**_ROTARY, "head_dim": 8}),
    "smollm3": (SmolLM3Config, {**_ROTARY, "no_rope_layers": [1, 0]}),
    "gemma": (GemmaConfig, {**_ROTARY, "head_dim": 8}),
    "gpt_neox": (GPTNeoXConfig, {key: _ROTARY[key] for key in _ROTARY if key != "num_key_value_heads"}),
    "opt": (OPTConfig, {"hidden_size": 24, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
                        "word_embed_proj_dim": 24, "max_position_embeddings": 256}),
    "mistral with a window": (MistralConfig, {**_ROTARY, "sliding_window": 6}),
}  # fmt: skip
FULL_ATTENTION = [name for name in CONFIGS if name != "mistral with a window"]


def tiny_causal(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Backbone:
    kind, sizes = CONFIGS[family]
    # A tied head would mostly write the last token once more.
    usual = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False}
    config = kind(vocab_size=VOCABULARY, **{**sizes, **usual, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        for name, weight in model.named_parameters():
            # Scores near 0 would hide a wrong softmax, gains of exactly 1 a forgotten gain.
            weight.copy_(1 + 0.3 * torch.randn_like(weight) if "norm" in name or "ln_" in name else weight * 6)
    return Backbone(family, model.to(dtype), Digits(), "")


class Digits:
    """A tokenizer whose text is the ids themselves; 1 ends a text."""

    eos_token_id = 1
    all_special_ids = (0, 1)

    def batch_decode(self, rows: Tensor, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" ".join(str(i) for i in row if i not in self.all_special_ids) for row in rows.tolist()]


def plain_logits(backbone: Backbone, prompt: Tensor, ids: Tensor) -> Tensor:
    """Return the logits [P + S, V] of [prompt; embed(ids)]."""
    embedded = torch.cat([prompt.to(backbone.dtype), backbone.model.get_input_embeddings()(ids)])
    logits: Tensor = backbone.model(inputs_embeds=embedded[None], use_cache=False).logits[0]
    return logits.to(prompt.dtype)


def plain_loss(backbone: Backbone, prompt: Tensor, text: Tensor, target: Tensor) -> Tensor:
    """Return −log p(target | [prompt; embed(text)])."""
    logits = plain_logits(backbone, prompt, torch.cat([text, target]))[len(prompt) + len(text) - 1 : -1]
    return -logits.log_softmax(-1)[torch.arange(len(target)), target].sum()


plain_losses = partial(plain.plain_losses, loss=plain_loss)
plain_gradients = partial(plain.plain_gradients, loss=plain_loss)


def plain_greedy(backbone: Backbone, prompt: Tensor, text: Tensor, most: int) -> str:
    """Write the likeliest token, `most` times or until the end; everything is read anew for each."""
    ids = text
    for _ in range(most):
        token = plain_logits(backbone, prompt, ids)[-1].argmax()
        if token == backbone.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token[None]])
    return str(backbone.tokenizer.batch_decode(ids[None, len(text) :], skip_special_tokens=True)[0])
