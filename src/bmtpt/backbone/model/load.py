"""Load a frozen language model from a hub id, a local folder or the offline wheel; safetensors only, no remote code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bmtpt.backbone.execution import Execution
from bmtpt.backbone.model.families import loader_of, require_tokenizer, require_usable, without_dropout
from bmtpt.backbone.model.offline import PARAMETERS, offline_folder
from bmtpt.errors import BackboneError

NO_LIMIT = 10**9


def load_model(name: str, execution: Execution) -> tuple[Any, tuple[Path, ...]]:
    """Load a backbone's model, frozen, without dropout, in its compute dtype and on its device.

    Returns:
        The model, and the files of its weights; none if they are nowhere but in the model (converted on the hub).

    Raises:
        BackboneError: As `Backbone.from_pretrained`.
    """
    place = _device(execution.device)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    native = torch.cuda.is_bf16_supported(False) if place.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    dtype = dtypes.get(execution.precision, torch.bfloat16 if native else torch.float32)
    source = str(offline_folder()) if name == "offline" else name
    model = _load_frozen(source, name, place, dtype)
    if name == "offline" and (count := sum(weight.numel() for weight in model.parameters())) != PARAMETERS:
        raise BackboneError(f"the offline backbone has {count:,} parameters instead of {PARAMETERS:,}")
    return model.to(place), _weight_files(source)


def _weight_files(source: str) -> tuple[Path, ...]:
    from huggingface_hub import try_to_load_from_cache

    folder = Path(source)
    if not folder.is_dir():
        config = try_to_load_from_cache(source, "config.json")
        folder = Path(config).parent if isinstance(config, str) else folder
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return (single,) if single.is_file() else ()
    return tuple(folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values())))


def _load_frozen(source: str, name: str, place: torch.device, dtype: torch.dtype) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoConfig

    # Plainer sentences than transformers has, and no pickled weights.
    folder = Path(source)
    if not source:
        raise BackboneError("there is no folder ''; give a folder saved by save_pretrained, or a hub id")
    if folder.is_file():
        raise BackboneError(f"backbone {name} is a file; give the folder that holds config.json and the weights")
    if not folder.is_dir() and source.startswith(("/", "./", "../", "~")):
        raise BackboneError(f"there is no folder '{name}'; give a folder saved by save_pretrained, or a hub id")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise BackboneError(f"backbone folder {name} has no config.json; give a folder saved by save_pretrained")
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        raise BackboneError(
            f"backbone folder {name} has no .safetensors weights; pickled weights are never loaded: save it again "
            "with model.save_pretrained(folder)"
        )
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        kind = loader_of(config, name)
        # On a CPU T5's sdpa is slower than eager: it makes a float mask in every layer. Else transformers knows best.
        eager = config.model_type == "t5" and place.type == "cpu"
        attention = {"attn_implementation": "eager"} if eager else {}
        with _quiet_transformers():
            model, info = kind.from_pretrained(
                source, config=without_dropout(config), dtype=dtype, use_safetensors=True,
                trust_remote_code=False, output_loading_info=True, **attention,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BackboneError(f"cannot load backbone '{name}': {_first_line(error)}") from error
    if info["missing_keys"]:  # transformers would fill them with random numbers
        missing = sorted(info["missing_keys"])
        raise BackboneError(f"the weights of backbone '{name}' lack {missing[0]} ({len(missing)} missing in all)")
    for module in model.modules():  # torch's single kernel for the same tanh-GELU takes 1/1.25 of a step's time
        if type(getattr(module, "act", None)).__name__ == "NewGELUActivation":
            module.act = torch.nn.GELU(approximate="tanh")
    model = model.eval().requires_grad_(False)
    require_usable(model, name)
    return model


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


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer that belongs to a backbone's name (see `Backbone.from_pretrained`).

    Raises:
        BackboneError: There is none.
    """
    from transformers import AutoTokenizer

    source = str(offline_folder()) if name == "offline" else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise BackboneError(f"cannot load the tokenizer of '{name}': {_first_line(error)}") from error
    require_tokenizer(tokenizer, name)
    tokenizer.model_max_length = NO_LIMIT  # texts are cut by the task's limit; the engines count positions
    return tokenizer


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: this torch was built without CUDA
        reason = _first_line(error).split(". ")[0]
        raise BackboneError(f"device '{name}' cannot be used here: {reason}; use cpu") from error
