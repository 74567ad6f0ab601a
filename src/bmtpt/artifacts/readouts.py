"""A prompt's readouts as tensors of its file: slope [M], offset [M, C] and, if linear, weights [M, C, D]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bmtpt.errors import ArtifactError
from bmtpt.posterior.readout import Readout

NAMES = frozenset({"slope", "offset", "weights"})


def to_tensors(readouts: Sequence[Readout]) -> dict[str, Tensor]:
    """Return the tensors of M readouts; none of no readouts."""
    if not readouts:
        return {}
    found = {
        "slope": torch.tensor([each.slope for each in readouts]),
        "offset": torch.stack([each.offset for each in readouts]),
    }
    weights = [each.weights for each in readouts if each.weights is not None]
    return found | ({"weights": torch.stack(weights)} if weights else {})


def from_tensors(tensors: Mapping[str, Tensor], prompts: int, words: int, width: int, path: str) -> tuple[Readout, ...]:
    """Return the readouts of M prompts among the tensors of an artifact.

    Raises:
        ArtifactError: They do not fit the number of prompts, the label words or the width of the model.
    """
    own = {name: tensor for name, tensor in tensors.items() if name in NAMES}
    right = {"slope": [prompts], "offset": [prompts, words], "weights": [prompts, words, width]}
    for name in ("slope", "offset", *own):
        if name not in own or list(own[name].shape) != right[name]:
            found = f"shape {list(own[name].shape)}" if name in own else "no tensor"
            raise ArtifactError(f"{path}: the readout's {name} has {found} where {right[name]} is right")
    weights = own.get("weights", [None] * prompts)
    return tuple(
        Readout(float(slope), offset.double(), None if each is None else each.double())
        for slope, offset, each in zip(own["slope"], own["offset"], weights, strict=True)
    )
