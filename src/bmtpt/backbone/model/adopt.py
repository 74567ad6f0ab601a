"""Freeze a model that the user has loaded, after checking that it is one that can be used."""

from __future__ import annotations

from typing import Any

from torch import nn

from bmtpt.backbone.model.families import loader_of, require_usable
from bmtpt.errors import BackboneError

MODEL = "a Hugging Face language model (a T5, another encoder-decoder, or a decoder-only one)"


def adopt(model: Any, name: str) -> None:
    """Freeze a loaded model in place: no gradients, no dropout.

    Raises:
        BackboneError: It is not a supported kind of language model, or has no head that predicts tokens.
    """
    needed = ("config", "get_input_embeddings", "get_output_embeddings")
    if not all(hasattr(model, each) for each in needed):
        kind = f"the name {model!r}" if isinstance(model, str) else f"an object of type {type(model).__name__}"
        hint = "; Backbone.from_pretrained loads one by name" if isinstance(model, str) else ""
        raise BackboneError(f"from_model takes {MODEL} that is loaded, not {kind}{hint}")
    loader_of(model.config, name)
    if model.get_output_embeddings() is None:
        raise BackboneError(
            f"{name} is a {type(model).__name__}, which has no head that predicts tokens; "
            "load it as a ...ForConditionalGeneration or ...ForCausalLM"
        )
    _freeze(model)
    require_usable(model, name)


def _freeze(model: nn.Module) -> None:
    model.requires_grad_(False).eval()
    for module in model.modules():  # eval() has turned dropout off; this keeps it off if someone calls train()
        if isinstance(module, nn.Dropout):
            module.p = 0.0


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
