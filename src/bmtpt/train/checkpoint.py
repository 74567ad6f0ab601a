"""Save and load a training state as one safetensors file: tensors and a JSON header, replaced atomically."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bmtpt.artifacts.files import write_files_atomically
from bmtpt.errors import ArtifactError, cannot_read, cannot_write
from bmtpt.sealed import parse_json


def save_checkpoint(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a checkpoint; a kill at any moment leaves the old one or the new one.

    The file holds the SHA-256 of its tensors and header, so that `load_checkpoint` notices every changed byte.

    Raises:
        ArtifactError: The file cannot be written, or its folder has vanished (it is not made anew).
    """
    if not path.parent.is_dir():
        raise ArtifactError(cannot_write(path, OSError(errno.ENOENT, os.strerror(errno.ENOENT))))
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header)
    content = save(contiguous, metadata={"header": text, "sha256": _digest(contiguous, text)})
    write_files_atomically(path.parent, {path.name: content})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint back.

    Raises:
        ArtifactError: The file is missing, truncated, changed, or was not written by `save_checkpoint`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if metadata["sha256"] != _digest(tensors, metadata["header"]):
            raise ArtifactError(
                f"the checkpoint {path} is not as it was written (its SHA-256 differs); delete it and start again"
            )
        return tensors, parse_json(metadata["header"])
    except OSError as error:
        raise ArtifactError(cannot_read(path, error)) from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"the checkpoint {path} cannot be read; delete it and start again") from error


def _digest(tensors: dict[str, Tensor], header: str) -> str:
    """Return the SHA-256 of every tensor's name, dtype, shape and bytes, and of the header."""
    found = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


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
