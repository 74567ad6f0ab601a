"""Prompts to and from Hugging Face PEFT folders (`adapter_config.json` + `adapter_model.safetensors`).

What decides the details (peft 0.21, peft_model.py): for an encoder-decoder (`PeftModelForSeq2SeqLM`) PROMPT_TUNING
prepends its rows to the encoder's input embeddings only. Its `num_transformer_submodules` defaults to 2 for T5; the
second P rows are then stored and never used. We write 1 and read either. For a decoder-only model
(`PeftModelForCausalLM`) the rows come before the whole row, padding included: its logits equal ours for a row that is
alone or padded on the right, and differ for a row padded on the left.

MULTITASK_PROMPT_TUNING is read, too: the prompt of its task t is P ∘ (cols_t rows_t). PEFT adds nothing to it that a
single prompt could not say, so PROMPT_TUNING is what is written.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from bmtpt.artifacts.card import BackboneCard, PromptCard, backbone_card, require_backbone, versions
from bmtpt.artifacts.files import write_files_atomically
from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.errors import ArtifactError, SettingsError, cannot_read
from bmtpt.sealed import field_problem

log = logging.getLogger("bmtpt")

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
README = "README.md"
PART = "prompt{}"
"""The folder of each prompt of an ensemble."""
_KEY = "prompt_embeddings"
_FACTORS = ("prefix_task_cols", "prefix_task_rows")
_FINGERPRINT = "bmtpt_backbone"
# Narrower types than fp32 are widened exactly; float64 would be rounded.
_EXACT = (torch.float32, torch.float16, torch.bfloat16)


class _Config(BaseModel):
    """The keys of adapter_config.json that we read; PEFT writes many more."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    peft_type: str
    task_type: str | None = None
    num_virtual_tokens: int
    token_dim: int
    num_transformer_submodules: int | None = None
    num_tasks: int = 1
    num_ranks: int = 1
    base_model_name_or_path: str | None = None
    peft_version: str | None = None


def export_peft(prompt: Prompt, folder: str | Path, base_model: str) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained(model, folder)` loads; an adapter in it is replaced.

    Each prompt of an ensemble gets a folder of its own inside. A README shows how they are used.

    Args:
        base_model: Hub id or folder that PEFT notes as the base model.

    Raises:
        ArtifactError: The folder cannot be written.
        SettingsError: `peft` is not installed.
    """
    if prompt.readouts:
        log.warning(
            "PEFT holds prompts alone: what is exported answers by the words, without the prompt's readout "
            "or temperature"
        )
    members, length, width = prompt.prompts.shape
    try:
        from peft import PromptTuningConfig
    except ImportError as error:
        raise SettingsError("export to PEFT needs the peft package; run: pip install 'bmtpt[peft]'") from error
    config = PromptTuningConfig(
        task_type=_task_type(prompt.card.backbone),
        num_virtual_tokens=length,
        token_dim=width,
        num_transformer_submodules=1,
        inference_mode=True,
        base_model_name_or_path=base_model,
    )
    metadata = {"format": "pt", _FINGERPRINT: prompt.card.backbone.fingerprint}
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    places = [Path(folder)] if members == 1 else [Path(folder) / PART.format(m) for m in range(members)]
    for place, own in zip(places, prompt.prompts, strict=True):
        # The rows are cloned to fp32 storage of their own: safetensors refuses views.
        weights = to_safetensors({_KEY: own.detach().to("cpu", torch.float32).clone()}, metadata=metadata)
        place.mkdir(parents=True, exist_ok=True)
        write_files_atomically(place, {WEIGHTS: weights, CONFIG: text.encode()})
    write_files_atomically(
        Path(folder), {README: _readme(prompt, base_model, places[0].name if members > 1 else "").encode()}
    )


def _readme(prompt: Prompt, base: str, first: str) -> str:
    several = (
        f" It is an ensemble: average the label probabilities of its {len(prompt.prompts)} folders." if first else ""
    )
    kind = "AutoModelForCausalLM" if prompt.card.backbone.decoder_only else "AutoModelForSeq2SeqLM"
    return _README.format(
        task=prompt.card.task, several=several, kind=kind, base=base, folder=first or ".",
        tokens=prompt.card.answer_tokens or 10,
    )  # fmt: skip


_README = """# A soft prompt for the task {task}

Made by bmtpt and written for PEFT.{several} In this folder:

```python
from peft import PeftModel
from transformers import AutoTokenizer, {kind}

base = "{base}"
model = PeftModel.from_pretrained({kind}.from_pretrained(base), "{folder}").eval()
tokenizer = AutoTokenizer.from_pretrained(base)
inputs = tokenizer("the text of a row", return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)
print(tokenizer.decode(answer[0], skip_special_tokens=True))
```

Rows of one batch share the adapter: PEFT takes `adapter_names` for soft prompts without a word and ignores them, so
switch with `model.set_adapter` and answer each prompt's rows apart. Pad texts of a decoder-only model on the right.
"""


def import_peft(
    folder: str | Path,
    backbone: Backbone | BackboneCard,
    task: str,
    task_definition: dict[str, Any],
    created: str,
    *,
    number: int = 0,
) -> Prompt:
    """Read a PEFT prompt-tuning folder as a prompt for one task. `peft` itself is not needed.

    A folder written by `export_peft` notes the backbone's fingerprint, which is then checked; other folders are
    checked by the prompt's width only. The card claims no more than the folder says.

    Args:
        number: Which of the tasks of a MULTITASK_PROMPT_TUNING adapter.

    Raises:
        ArtifactError: The folder does not hold a prompt-tuning adapter for a model of this kind and width.
        BackboneError: The folder was exported for another backbone.
    """
    folder, noted = Path(folder), backbone if isinstance(backbone, BackboneCard) else backbone_card(backbone)
    config = _read_config(folder, noted)
    if not 0 <= number < config.num_tasks:
        raise ArtifactError(f"{folder} holds prompts for tasks 0 to {config.num_tasks - 1}, and none for {number}")
    rows = _read_rows(folder, config, backbone, number)
    card = PromptCard(
        backbone=noted,
        task=task,
        task_definition=task_definition,
        method="peft",
        sources=(),
        posterior=None,
        settings={"base_model": config.base_model_name_or_path, "peft_version": config.peft_version},
        selection={},
        trained_parameters=config.num_virtual_tokens * config.token_dim,
        steps=0,
        seconds=0.0,
        versions=versions(),
        created=created,
    )
    return Prompt(rows[: config.num_virtual_tokens].float().unsqueeze(0), card)


def _task_type(backbone: BackboneCard) -> str:
    return "CAUSAL_LM" if backbone.decoder_only else "SEQ_2_SEQ_LM"


def _read_config(folder: Path, backbone: BackboneCard) -> _Config:
    path = folder / CONFIG
    try:
        config = _Config.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(cannot_read(path, error)) from error
    except ValidationError as error:
        raise ArtifactError(f"{path} is not a prompt-tuning configuration: {field_problem(error)}") from error
    if config.peft_type not in ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING"):
        raise ArtifactError(
            f"{folder} holds a {config.peft_type} adapter; soft prompts are PROMPT_TUNING or MULTITASK_PROMPT_TUNING"
        )
    if config.task_type != _task_type(backbone):
        raise ArtifactError(
            f"{folder} is for task type {config.task_type}, and backbone '{backbone.name}' needs {_task_type(backbone)}"
        )
    if config.token_dim != backbone.d_model:
        raise ArtifactError(
            f"{folder} has prompts of width {config.token_dim} and backbone '{backbone.name}' has {backbone.d_model}"
        )
    return config


def _read_rows(folder: Path, config: _Config, backbone: Backbone | BackboneCard, number: int) -> Tensor:
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ArtifactError(
                f"{folder} holds pickled weights, which are never loaded: save it again with safe_serialization=True"
            )
        raise ArtifactError(f"{folder} has no {WEIGHTS}; copy the whole folder")
    try:
        with safe_open(path, framework="pt") as file:
            wanted = [_KEY, *(_FACTORS if config.peft_type != "PROMPT_TUNING" else ())]
            if set(file.keys()) != set(wanted):
                named = ", ".join(f"'{name}'" for name in wanted)
                raise ArtifactError(f"{path} holds {sorted(file.keys())} where only {named} belongs")
            tensors: list[Tensor] = [file.get_tensor(name) for name in wanted]
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is not a whole safetensors file: {error}") from error
    if _FINGERPRINT in metadata:
        exported_for = config.base_model_name_or_path or "unknown"
        card = backbone if isinstance(backbone, BackboneCard) else backbone_card(backbone)
        noted = card.model_copy(update={"name": exported_for, "fingerprint": metadata[_FINGERPRINT]})
        require_backbone(noted, backbone)
    submodules = config.num_transformer_submodules or (1 if backbone.decoder_only else 2)  # PEFT's defaults
    P, D, tasks, rank = config.num_virtual_tokens * submodules, config.token_dim, config.num_tasks, config.num_ranks
    shapes = [[P, D], [tasks, P, rank], [tasks, rank, D]]
    for tensor, expected in zip(tensors, shapes, strict=False):
        if list(tensor.shape) != expected or 0 in expected:
            raise ArtifactError(f"{path} has shape {list(tensor.shape)} where {CONFIG} says {expected}")
        if tensor.dtype not in _EXACT:
            raise ArtifactError(f"{path} holds {tensor.dtype}; save it again as torch.float32")
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{path} holds numbers that are not finite; train the prompt again")
    rows, *factors = (tensor.float() for tensor in tensors)
    return rows * (factors[0][number] @ factors[1][number]) if factors else rows
