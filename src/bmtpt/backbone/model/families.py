"""Which models and tokenizers can be a backbone."""

from __future__ import annotations

from typing import Any

import torch

from bmtpt.backbone.model.fingerprint import PROBES
from bmtpt.errors import BackboneError, is_out_of_memory

# What such a model computes for one row depends on the other rows of the batch.
_EXPERTS_WITH_CAPACITY = ("switch_transformers", "nllb-moe")


ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-4}
"""Change of a logit, as a share of a real change, that may be rounding; in other dtypes 1e-2."""


def loader_of(config: Any, name: str) -> Any:
    """Return the transformers class that loads a configuration's model.

    Raises:
        BackboneError: The model does not generate text.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, T5ForConditionalGeneration
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    if kind in _EXPERTS_WITH_CAPACITY:
        raise BackboneError(
            f"{name} is a {kind} model, whose experts drop tokens when a batch is full; give another one"
        )
    if kind == "t5" and config.is_encoder_decoder:
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
    from transformers import GenerationConfig

    config = model.config
    start = getattr(config, "decoder_start_token_id", None)
    if config.is_encoder_decoder and start not in range(len(model.get_input_embeddings().weight)):
        lacks = "lacks decoder_start_token_id" if start is None else f"has no token for decoder_start_token_id {start}"
        raise BackboneError(f"the configuration of {name} {lacks}; give the model's own in config.json")
    if config.is_encoder_decoder:
        # A folder's generation settings (beams, banned repetitions) go: greedy means the likeliest token.
        keys = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id")
        model.generation_config = GenerationConfig(**{key: getattr(config, key, None) for key in keys})
    if config.model_type == "t5":
        return
    if not _reads_forward(model):
        raise BackboneError(
            f"{name} is a {config.model_type} model that, in this version of transformers, does not predict the next "
            "token from the embeddings before it alone; give a model such as T5, BART, GPT-2, Llama or Qwen"
        )


@torch.no_grad()
def _reads_forward(model: Any) -> bool:
    """Compare logits of three tokens with those of their embeddings after the last token was replaced.

    The last one's change is the measure of what the others may change by rounding.
    """
    embed = model.get_input_embeddings()
    ids = torch.tensor([[5, 6, 7]], device=input_device(model)) % model.config.get_text_config().vocab_size
    other = ids[:, [0, 1, 0]]
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
    change = (truth - changed).abs().amax(dim=(0, 2))  # of each position
    return bool(change[:2].max() <= ROUNDING.get(truth.dtype, 1e-2) * change[2])


def is_spread(model: Any) -> bool:
    """Tell whether accelerate moves a model's inputs or weights between devices while it runs."""
    return hasattr(model, "_hf_hook")


def input_device(model: Any) -> torch.device:
    """Return where a model takes its inputs: of one that is spread, where its embedding table is used, not kept."""
    table = model.get_input_embeddings()
    hook = getattr(table, "_hf_hook", None)
    places = [getattr(each, "execution_device", None) for each in getattr(hook, "hooks", [hook])]
    return next((torch.device(place) for place in places if place is not None), table.weight.device)


def adopt(model: Any, name: str) -> None:
    """Freeze a loaded model in place: no gradients, no dropout.

    Raises:
        BackboneError: It is not a supported kind of language model, or has no head that predicts tokens.
    """
    needed = ("config", "get_input_embeddings", "get_output_embeddings")
    if not all(hasattr(model, each) for each in needed):
        kind = f"the name {model!r}" if isinstance(model, str) else f"an object of type {type(model).__name__}"
        hint = "; Backbone.from_pretrained loads one by name" if isinstance(model, str) else ""
        raise BackboneError(
            "from_model takes a Hugging Face language model (a T5, another encoder-decoder, or a decoder-only one) "
            f"that is loaded, not {kind}{hint}"
        )
    loader_of(model.config, name)
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        raise BackboneError(f"{name} has a soft prompt of its own (PEFT prompt learning); give the model without it")
    if model.get_output_embeddings() is None:
        raise BackboneError(
            f"{name} is a {type(model).__name__}, which has no head that predicts tokens; "
            "load it as a ...ForConditionalGeneration or ...ForCausalLM"
        )
    model.requires_grad_(False).eval()
    for module in model.modules():  # eval() has turned dropout off; this keeps it off if someone calls train()
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    require_usable(model, name)
    require_prompt_gradient(model, name)


def require_prompt_gradient(model: Any, name: str) -> None:
    """Raise a BackboneError if no gradient reaches the input embeddings, where a prompt is trained."""
    ids = torch.tensor([[5, 6, 7]], device=input_device(model)) % model.config.get_text_config().vocab_size
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        for needed in (False, True):  # bitsandbytes' 4-bit layers lose their derivative in the first pass without one
            with torch.set_grad_enabled(needed):
                total = model(inputs_embeds=embeddings, use_cache=False, **decoder).logits.float().sum()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(total, embeddings)
    except (TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise BackboneError(
            f"{name} cannot train a prompt: no gradient reaches its input embeddings ({reason}); give a model whose "
            "layers can be differentiated"
        ) from error
    if not bool(gradient.isfinite().all()):
        raise BackboneError(f"{name} cannot train a prompt: the gradient of its input embeddings is not finite")


def require_tokens(tokenizer: Any, model: Any, name: str) -> None:
    """Check that every token of a tokenizer has a row in the model's embedding table; raise a BackboneError if not."""
    rows = len(model.get_input_embeddings().weight)
    if beyond := sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows):
        first, token = beyond[0]
        raise BackboneError(
            f"the tokenizer of '{name}' has {len(beyond)} tokens without a row in the model's table of {rows:,}, first "
            f"{token!r} ({first:,}): call model.resize_token_embeddings({beyond[-1][0] + 1}) and save the model again, "
            "or use the tokenizer it was trained with"
        )


def require_tokenizer(tokenizer: Any, name: str) -> None:
    """Check that something is a tokenizer with a vocabulary and an end of sequence.

    Raises:
        BackboneError: It is not.
    """
    needed = ("encode", "batch_decode", "convert_ids_to_tokens", "all_special_ids", "eos_token_id")
    if not all(hasattr(tokenizer, each) for each in needed):
        raise BackboneError(f"from_model takes the model's tokenizer, not an object of type {type(tokenizer).__name__}")
    if len(tokenizer) - len(tokenizer.all_special_ids) < 2:  # transformers makes an empty one up
        raise BackboneError(f"cannot load the tokenizer of '{name}': it has no vocabulary (tokenizer.json is missing)")
    if tokenizer.eos_token_id is None:
        raise BackboneError(
            f"the tokenizer of '{name}' has no end-of-sequence token, and answers must end; set eos_token"
        )
    try:
        for text in PROBES:
            tokenizer.encode(text)
    except Exception as error:  # tokenizers in Rust raise no kind of their own
        raise BackboneError(f"the tokenizer of '{name}' cannot encode text ({error}); give the model's own") from error
