"""Which models can be a backbone, and what decides the function that each of them computes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from bmtpt.errors import BackboneError, is_out_of_memory

# What decides the function a T5 computes. Everything else in config.json (versions, paths, dtype, dropout) may
# differ between two copies of one model. Artifacts hold this fingerprint: the list never changes.
_T5_KEYS = (
    "model_type",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "feed_forward_proj",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "vocab_size",
    "decoder_start_token_id",
    "scale_decoder_outputs",
)

# Of other models every key counts but these, and all that have to do with dropout or begin with an underscore.
_IRRELEVANT = {
    "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_factor",
    "initializer_range", "init_std", "label2id", "output_attentions", "output_hidden_states", "prefix",
    "pretraining_tp", "problem_type", "quantization_config", "return_dict", "sep_token_id", "task_specific_params",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


# What such a model computes for one row depends on the rows beside it.
_EXPERTS_WITH_CAPACITY = ("switch_transformers", "nllb-moe")


def loader_of(config: Any, name: str) -> Any:
    """Return the transformers class that loads a configuration's model.

    Raises:
        BackboneError: It is no language model that writes text.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, T5ForConditionalGeneration
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    if kind in _EXPERTS_WITH_CAPACITY:
        raise BackboneError(
            f"{name} is a {kind} model, whose experts drop tokens when a batch is full; give another one"
        )
    if kind == "t5":
        return T5ForConditionalGeneration
    if config.is_encoder_decoder and kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForSeq2SeqLM
    encoder = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not config.is_encoder_decoder and not encoder and kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    raise BackboneError(
        f"{name} is a {kind} model, which does not write text from left to right; give a T5, another encoder-decoder "
        "(BART, mT5) or a decoder-only language model (GPT-2, Llama, Qwen)"
    )


def without_dropout(config: Any) -> Any:
    """Set every dropout rate to 0, in place: dropout would make the log-density random."""
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    return config


def require_usable(model: Any, name: str) -> None:
    """Check by a forward pass that a model reads embeddings, and predicts each token from those before it alone.

    An encoder-decoder's generation settings are made plain.

    Raises:
        BackboneError: It does not, or an encoder-decoder has no start token.
    """
    config = model.config
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        raise BackboneError(f"the configuration of {name} lacks decoder_start_token_id; add it to config.json")
    if config.is_encoder_decoder:
        _plain_greedy(model)
    if config.model_type == "t5":
        return
    if not _reads_forward(model):
        raise BackboneError(
            f"{name} is a {config.model_type} model that, in this version of transformers, does not predict the next "
            "token from the embeddings before it alone; give a model such as T5, BART, GPT-2, Llama or Qwen"
        )


@torch.no_grad()
def _reads_forward(model: Any) -> bool:
    """Compare logits of three tokens with those of their embeddings after the last token was exchanged."""
    ids = torch.tensor([[5, 6, 7]]) % model.config.get_text_config().vocab_size
    other = ids[:, [0, 1, 0]]
    embed = model.get_input_embeddings()
    try:
        if model.config.is_encoder_decoder:
            truth = model(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits
            changed = model(inputs_embeds=embed(ids), decoder_input_ids=other, use_cache=False).logits
        else:
            truth = model(input_ids=ids, use_cache=False).logits
            changed = model(inputs_embeds=embed(other), use_cache=False).logits
    except (TypeError, ValueError, AttributeError, AssertionError, RuntimeError, IndexError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return torch.allclose(truth[:, :2], changed[:, :2], rtol=1e-4, atol=1e-4)


def _plain_greedy(model: Any) -> None:
    """Drop a folder's generation settings (beams, banned repetitions): greedy means the likeliest token."""
    from transformers import GenerationConfig

    keys = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id")
    model.generation_config = GenerationConfig(**{key: getattr(model.config, key, None) for key in keys})


def fingerprint_of(model: Any) -> str:
    """Return the SHA-256 over the architecture and the fp32 weights, in hexadecimal."""
    digest = hashlib.sha256(json.dumps(_architecture(model.config), sort_keys=True, default=str).encode())
    for key, weight in sorted(model.named_parameters()):
        digest.update(f"{key}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().contiguous().numpy().data)
    return digest.hexdigest()


def _architecture(config: Any) -> dict[str, Any]:
    if config.model_type == "t5":
        return {key: getattr(config, key, None) for key in _T5_KEYS}
    # Only what differs from the class's defaults: a later transformers may add keys, and their defaults change nothing.
    usual = type(config)().to_dict()
    told = {key: value for key, value in config.to_dict().items() if _decides(key) and usual.get(key) != value}
    return {**told, "model_type": config.model_type}


def _decides(key: str) -> bool:
    return key not in _IRRELEVANT and "drop" not in key and not key.startswith("_")
