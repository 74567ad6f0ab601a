"""Load a frozen T5 from a hub id, a local folder or the offline wheel; safetensors only, no remote code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from bmtpt.backbone.model import Backbone
from bmtpt.backbone.offline import PARAMETERS, offline_folder
from bmtpt.errors import BackboneError

NO_LIMIT = 10**9

Precision = Literal["auto", "float32", "bfloat16"]

# What decides the function a T5 computes. Everything else in config.json (versions, paths, dtype, dropout) may
# differ between two copies of one model.
_FINGERPRINTED = (
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


def load_backbone(name: str, *, precision: Precision = "auto", device: str = "auto") -> Backbone:
    """Load a T5-family model, frozen, without dropout.

    Args:
        name: A Hugging Face hub id (``google/t5-v1_1-base``), a local folder, or ``offline``.
        precision: Compute dtype. ``auto`` is bfloat16 where the processor multiplies it natively, else float32.
        device: ``auto`` is ``cuda`` where there is one, else ``cpu``.

    Raises:
        BackboneError: The model is not there, is not a T5, or holds no safetensors weights.
    """
    place = torch.device(_auto_device() if device == "auto" else device)
    source = str(offline_folder()) if name == "offline" else name
    model = _load_frozen(source, name)
    if name == "offline" and (count := _count(model)) != PARAMETERS:
        raise BackboneError(f"the offline backbone has {count:,} parameters instead of {PARAMETERS:,}")
    tokenizer = load_tokenizer(name)
    fingerprint = fingerprint_of(model)
    embeddings = model.get_input_embeddings().weight.detach().clone().to(place)
    model = model.to(place, _dtype(precision, place))
    return Backbone(name, model, tokenizer, fingerprint, embeddings)


def fingerprint_of(model: Any) -> str:
    """Return the SHA-256 over the architecture and the fp32 weights, in hexadecimal."""
    config = {key: getattr(model.config, key, None) for key in _FINGERPRINTED}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for key, weight in sorted(model.named_parameters()):
        digest.update(f"{key}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().contiguous().numpy().data)
    return digest.hexdigest()


def _load_frozen(source: str, name: str) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoConfig, T5ForConditionalGeneration

    _check_folder(source, name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.model_type != "t5":
            raise BackboneError(
                f"{name} is a {config.model_type} model; this version works with the T5 family (T5, T5 v1.1, FLAN-T5)"
            )
        # Dropout would make the log-density random; transformers' sdpa makes a float mask per layer.
        with _quiet_transformers():
            model, info = T5ForConditionalGeneration.from_pretrained(
                source,
                dtype=torch.float32,
                use_safetensors=True,
                dropout_rate=0.0,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BackboneError(f"cannot load backbone '{name}': {_first_line(error)}") from error
    if info["missing_keys"]:  # transformers would fill them with random numbers
        missing = sorted(info["missing_keys"])
        raise BackboneError(f"the weights of backbone '{name}' lack {missing[0]} ({len(missing)} missing in all)")
    _fuse_activations(model)
    return model.eval().requires_grad_(False)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from warning of a head that is not tied, which is how T5 v1.1 is made."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _check_folder(source: str, name: str) -> None:
    """Give folders a plainer sentence than transformers does, and refuse pickled weights outright."""
    folder = Path(source)
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise BackboneError(f"backbone folder {name} has no config.json; give a folder saved by save_pretrained")
    if not list(folder.glob("*.safetensors")):
        raise BackboneError(
            f"backbone folder {name} has no .safetensors weights; pickled weights are never loaded: save it again "
            "with model.save_pretrained(folder)"
        )


def _fuse_activations(model: Any) -> None:
    """Swap transformers' composed tanh-GELU for torch's single kernel: the same formula, 1.25 times a step."""
    for module in model.modules():
        if type(getattr(module, "act", None)).__name__ == "NewGELUActivation":
            module.act = torch.nn.GELU(approximate="tanh")


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer that belongs to a backbone's name (see `load_backbone`).

    Raises:
        BackboneError: There is none.
    """
    from transformers import AutoTokenizer

    source = str(offline_folder()) if name == "offline" else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise BackboneError(f"cannot load the tokenizer of '{name}': {_first_line(error)}") from error
    if len(tokenizer) - len(tokenizer.all_special_ids) < 2:  # transformers makes an empty one up
        raise BackboneError(f"cannot load the tokenizer of '{name}': it has no vocabulary (tokenizer.json is missing)")
    tokenizer.model_max_length = NO_LIMIT  # texts are cut by the task's limit, and T5 has relative positions
    return tokenizer


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _count(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _auto_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    on_gpu = device.type == "cuda"
    native = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32
