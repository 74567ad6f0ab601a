"""Prompts to and from Hugging Face PEFT folders (`adapter_config.json` + `adapter_model.safetensors`).

What decides the details (peft 0.21, peft_model.py): for an encoder-decoder (`PeftModelForSeq2SeqLM`) PROMPT_TUNING
prepends its rows to the encoder's input embeddings only. Its `num_transformer_submodules` defaults to 2 for T5; the
second P rows are then stored and never used. We write 1 and read either. For a decoder-only model
(`PeftModelForCausalLM`) the rows come before the whole row, padding included: its logits equal ours for a row that is
alone or padded on the right, and differ for a row padded on the left.
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
_KEY = "prompt_embeddings"
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
    base_model_name_or_path: str | None = None
    peft_version: str | None = None


def export_peft(prompt: Prompt, folder: str | Path, base_model: str) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained(model, folder)` loads; an adapter in it is replaced.

    Args:
        prompt: A single prompt (M = 1).
        base_model: Hub id or folder that PEFT notes as the base model.

    Raises:
        ArtifactError: The prompt is an ensemble, or the folder cannot be written.
        SettingsError: `peft` is not installed.
    """
    if prompt.readouts:
        log.warning(
            "PEFT holds prompts alone: what is exported answers by the words, without the prompt's readout "
            "or temperature"
        )
    members, length, width = prompt.prompts.shape
    if members != 1:
        raise ArtifactError(f"PEFT holds one prompt and this is an ensemble of {members}: export a single prompt")
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
    # The rows are cloned to fp32 storage of their own: safetensors refuses views.
    rows = prompt.prompts[0].detach().to("cpu", torch.float32).clone()
    metadata = {"format": "pt", _FINGERPRINT: prompt.card.backbone.fingerprint}
    weights = to_safetensors({_KEY: rows}, metadata=metadata)
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    write_files_atomically(Path(folder), {WEIGHTS: weights, CONFIG: text.encode()})


def import_peft(
    folder: str | Path, backbone: Backbone | BackboneCard, task: str, task_definition: dict[str, Any], created: str
) -> Prompt:
    """Read a PEFT prompt-tuning folder as a prompt for one task. `peft` itself is not needed.

    A folder written by `export_peft` notes the backbone's fingerprint, which is then checked; other folders are
    checked by the prompt's width only. The card claims no more than the folder says.

    Raises:
        ArtifactError: The folder does not hold a prompt-tuning adapter for a model of this kind and width.
        BackboneError: The folder was exported for another backbone.
    """
    folder, noted = Path(folder), backbone if isinstance(backbone, BackboneCard) else backbone_card(backbone)
    config = _read_config(folder, noted)
    rows = _read_rows(folder, config, backbone)
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
    if config.peft_type != "PROMPT_TUNING":
        raise ArtifactError(f"{folder} holds a {config.peft_type} adapter; only PROMPT_TUNING is a soft prompt")
    if config.task_type != _task_type(backbone):
        raise ArtifactError(
            f"{folder} is for task type {config.task_type}, and backbone '{backbone.name}' needs {_task_type(backbone)}"
        )
    if config.token_dim != backbone.d_model:
        raise ArtifactError(
            f"{folder} has prompts of width {config.token_dim} and backbone '{backbone.name}' has {backbone.d_model}"
        )
    return config


def _read_rows(folder: Path, config: _Config, backbone: Backbone | BackboneCard) -> Tensor:
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ArtifactError(
                f"{folder} holds pickled weights, which are never loaded: save it again with safe_serialization=True"
            )
        raise ArtifactError(f"{folder} has no {WEIGHTS}; copy the whole folder")
    try:
        with safe_open(path, framework="pt") as file:
            if set(file.keys()) != {_KEY}:
                raise ArtifactError(f"{path} holds {sorted(file.keys())} where only '{_KEY}' belongs")
            rows: Tensor = file.get_tensor(_KEY)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is not a whole safetensors file: {error}") from error
    if _FINGERPRINT in metadata:
        exported_for = config.base_model_name_or_path or "unknown"
        card = backbone if isinstance(backbone, BackboneCard) else backbone_card(backbone)
        noted = card.model_copy(update={"name": exported_for, "fingerprint": metadata[_FINGERPRINT]})
        require_backbone(noted, backbone)
    submodules = config.num_transformer_submodules or (1 if backbone.decoder_only else 2)  # PEFT's defaults
    expected = [config.num_virtual_tokens * submodules, config.token_dim]
    if list(rows.shape) != expected or 0 in expected:
        raise ArtifactError(f"{path} has shape {list(rows.shape)} where {CONFIG} says {expected}")
    if rows.dtype not in _EXACT:
        raise ArtifactError(f"{path} holds {rows.dtype}; save it again as torch.float32")
    if not torch.isfinite(rows).all():
        raise ArtifactError(f"{path} holds numbers that are not finite; train the prompt again")
    return rows
