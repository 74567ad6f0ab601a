"""The fingerprint that ties an artifact to the function that its backbone computes.

A hash over the architecture and the weights: the bytes of the safetensors files, tensor by tensor, so that neither the
compute dtype nor the way that a model is cut into files matters; of a model that was given loaded, its state's bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bmtpt.backbone.model.embedded import cache_root
from bmtpt.errors import BackboneError
from bmtpt.sealed import read_sealed, sealed_line

# What decides the function a T5 computes. Everything else in config.json (versions, paths, dtype, dropout) may
# differ between two copies of one model. Artifacts hold this fingerprint: the list never changes.
_T5_KEYS = (
    "model_type", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "feed_forward_proj",
    "relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon", "vocab_size",
    "decoder_start_token_id", "scale_decoder_outputs",
)  # fmt: skip

# Of other models every key counts but these, and all that have to do with dropout or begin with an underscore.
_IRRELEVANT = {
    "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_factor",
    "initializer_range", "init_std", "label2id", "output_attentions", "output_hidden_states", "prefix",
    "pretraining_tp", "problem_type", "quantization_config", "return_dict", "sep_token_id", "task_specific_params",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip

_CHUNK = 2**22

PROBES = ("Hello, world!", "  two  blanks\nand\ttabs ", "Ünï ½ ﬁ", "日本語 русский عربي", "don't 3.14 x_y", "🙂", "")
"""Texts on which tokenizers differ by how they split and normalise."""


class _Stored(NamedTuple):
    """A tensor in a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    stop: int


def fingerprint_of_files(model: Any, files: Sequence[Path]) -> str:
    """Return the fingerprint of a model that was loaded from safetensors files, in hexadecimal.

    The files are read once; their hash is kept in the user's cache under their places, sizes and times of change.
    """
    facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(json.dumps(sorted(facts)).encode()).hexdigest()
    note = cache_root() / "fingerprints" / f"{key}.json"
    with suppress(BackboneError):  # damaged: the files are read again
        if "weights" in (kept := read_sealed(note, BackboneError) or {}):
            return _joined(model, kept["weights"])
    digest = hashlib.sha256()
    for each in sorted(_stored(files)):
        digest.update(f"{each.name} {each.dtype} {each.shape}".encode())
        with each.path.open("rb") as file:
            file.seek(each.start)
            for at in range(each.start, each.stop, _CHUNK):
                digest.update(file.read(min(_CHUNK, each.stop - at)))
    with suppress(OSError):  # a cache that cannot be written only costs time
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(sealed_line({"weights": digest.hexdigest()}))  # half a line does not fit its seal
    return _joined(model, digest.hexdigest())


def fingerprint_of_state(model: Any) -> str:
    """Return the fingerprint of a model that was given loaded, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return _joined(model, digest.hexdigest())


def fingerprint_v1(model: Any, files: Sequence[Path] = ()) -> str:
    """Return what version-1 artifacts hold: SHA-256 over architecture and fp32 weights, read tensor by tensor.

    Args:
        files: Where the model was loaded from: there the weights are not rounded to its compute dtype.
    """
    from safetensors import safe_open

    prefix = f"{model.base_model_prefix}." if files else ""
    places = {name: each.path for each in _stored(files) for name in (each.name, prefix + each.name)}
    digest = hashlib.sha256(json.dumps(architecture(model.config), sort_keys=True, default=str).encode())
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        if name in places:
            with safe_open(places[name], framework="pt") as file:
                own = name if name in file.keys() else name.removeprefix(prefix)  # noqa: SIM118 (not a dict)
                weight = file.get_tensor(own)
        digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of what decides which ids a tokenizer gives: tokens, scores, merges, and the ids of a few texts.

    Not of its file: another version may write the same tokenizer in another way.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)  # a tokenizer in plain Python has none
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    scores = model.get("vocab") if isinstance(model.get("vocab"), list) else None
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model.get("merges", ())]
    ids = [list(tokenizer.encode(text)) for text in PROBES]
    facts = [sorted(tokenizer.get_vocab().items()), scores, merges, ids]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def architecture(config: Any) -> dict[str, Any]:
    """Return what of a configuration decides the function that its model computes."""
    if config.model_type == "t5":
        return {key: getattr(config, key, None) for key in _T5_KEYS}
    # Only what differs from the class's defaults: a later transformers may add keys, and their defaults change nothing.
    usual = type(config)().to_dict()
    changed = {key: value for key, value in config.to_dict().items() if usual.get(key) != value}
    decisive = {key for key in changed if key not in _IRRELEVANT and "drop" not in key and not key.startswith("_")}
    return {**{key: value for key, value in changed.items() if key in decisive}, "model_type": config.model_type}


def _joined(model: Any, weights: str) -> str:
    """Join architecture, the names of the parameters (a tied weight has one) and the weights' hash."""
    names = sorted(name for name, _ in model.named_parameters())
    facts = {"architecture": architecture(model.config), "parameters": names, "weights": weights}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _stored(files: Sequence[Path]) -> Iterator[_Stored]:
    """Yield the tensors of safetensors files: eight bytes that count a JSON header, the header, then the bytes."""
    for path in files:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, facts in header.items():
            if name != "__metadata__":
                start, stop = facts["data_offsets"]
                shape = tuple(facts["shape"])
                yield _Stored(name, facts["dtype"], shape, path, 8 + length + start, 8 + length + stop)
