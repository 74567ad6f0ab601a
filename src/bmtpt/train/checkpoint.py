"""Save and load a training state as one safetensors file: tensors and a JSON header, replaced atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bmtpt.artifacts.files import write_files_atomically
from bmtpt.errors import ArtifactError


def save_checkpoint(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a checkpoint; a kill at any moment leaves the old one or the new one.

    Raises:
        ArtifactError: The file cannot be written.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_files_atomically(path.parent, {path.name: save(contiguous, metadata={"header": json.dumps(header)})})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint back.

    Raises:
        ArtifactError: The file is missing, truncated or not ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["header"])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"the checkpoint {path} cannot be read; delete it and start again") from error


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors (by "parameter/name") and plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{parameter}/{name}"] = value
    return tensors, numbers


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Undo `optimiser_tensors` on an optimiser over the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in (tensors | numbers).items():
        parameter, name = key.split("/", 1)
        state.setdefault(int(parameter), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
