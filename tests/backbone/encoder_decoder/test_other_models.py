"""Encoder-decoders beside T5 through the generic engine, against the model itself (`plain.py`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import VOCABULARY, plain_gradients, plain_losses, random_batch, random_prompts, relative
from transformers import AutoModelForSeq2SeqLM, BartConfig, LongT5Config, MT5Config

from bmtpt.backbone import Backbone
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.model.families import require_usable
from bmtpt.errors import BackboneError
from bmtpt.types import TokenBatch

_T5 = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
CONFIGS: dict[str, Any] = {
    # Its embedding is scaled, so that rows of the bare table would be wrong.
    "bart": (BartConfig, {"d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3,
                          "decoder_attention_heads": 3, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40,
                          "max_position_embeddings": 64, "scale_embedding": True}),
    "mt5": (MT5Config, _T5),
    "longt5": (LongT5Config, {**_T5, "local_radius": 4}),
    "longt5 with global tokens": (LongT5Config, {**_T5, "local_radius": 4, "global_block_size": 4,
                                                 "encoder_attention_type": "transient-global"}),
}  # fmt: skip


def tiny(kind: str) -> Backbone:
    config, sizes = CONFIGS[kind]
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(config(vocab_size=VOCABULARY, **sizes, **tokens)).eval()
        for name, weight in model.requires_grad_(False).named_parameters():
            weight.mul_(1 if "norm" in name else 1.5)
    return Backbone(kind, model, None, "")


@pytest.mark.parametrize("kind", CONFIGS)
def test_losses_and_gradients_are_those_of_single_unpadded_examples(kind: str) -> None:
    backbone, prompts, weights = tiny(kind), random_prompts(2, 5), torch.tensor([1.0, 0.2, 3.0])
    batch = random_batch([4, 30, 17], [2, 1, 5])
    engine = backbone.engine
    assert type(engine) is HuggingFaceEngine
    losses, gradient = engine.gradients(prompts, batch, weights)
    true_losses, truth = plain_gradients(backbone, prompts, batch, weights)
    assert relative(losses, true_losses) < 1e-5
    assert relative(gradient, truth) < 1e-5
    ranked = engine.answer_log_likelihoods(prompts, batch.inputs, batch.targets)
    each = [plain_losses(backbone, prompts, TokenBatch(batch.inputs, [answer] * 3)) for answer in batch.targets]
    assert relative(ranked, -torch.stack(each, dim=2)) < 1e-5


@pytest.mark.parametrize("kind", ["bart", "mt5"])
def test_a_decoder_that_sees_what_follows_is_refused(kind: str) -> None:
    """As UMT5's does in transformers 5.17: its losses would tell nothing of what it writes."""
    backbone = tiny(kind)
    require_usable(backbone.model, kind)
    for module in backbone.model.modules():
        if hasattr(module, "config"):
            module.config.is_causal = False
    with pytest.raises(BackboneError, match=f"{kind} is a {kind} model that, in this version of transformers, does no"):
        require_usable(backbone.model, kind)


@pytest.mark.parametrize("kind", [RuntimeError, IndexError, KeyError])
def test_a_model_whose_forward_raises_is_refused(kind: type[Exception]) -> None:
    model = tiny("bart").model

    def fails(*inputs: Any) -> None:
        raise kind("sizes do not match")

    model.register_forward_pre_hook(fails)
    with pytest.raises(BackboneError, match="does not predict the next"):
        require_usable(model, "bart")


def test_more_tokens_than_positions_are_refused_with_what_to_set() -> None:
    with pytest.raises(BackboneError, match="64 positions and prompt, text and answer need 65"):
        HuggingFaceEngine(tiny("bart")).losses(random_prompts(1, 5), random_batch([60], [2]))
